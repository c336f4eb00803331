// The panel at the right: the whole circuit when nothing is selected, else one node with its inputs and outputs.

const ROWS_AT_FIRST = 30;
const panel = byId("panel");

function showPanel(selected, select) {
  panel.replaceChildren(...(selected < 0 ? overview(select) : nodeDetails(selected, select)));
  panel.scrollTop = 0;
}

const kindBadge = (edge) =>
  element(
    "span",
    { class: `badge kind-${colourOf(edge)}`, title: data.kinds[edges.kind[edge]][1] },
    data.kinds[edges.kind[edge]][0],
  );

const number = (value) => element("td", { class: value < 0 ? "number minus" : "number" }, signed(value));

function symbol(node) {
  const mark = drawing("path", { d: nodes.path[node], class: "shape" });
  return drawing(
    "svg",
    {
      class: `symbol ${nodes.attribution[node] < 0 ? "negative" : "positive"}`,
      viewBox: "-18 -12 36 24",
      "aria-hidden": "true",
    },
    mark,
  );
}

function nodeButton(node, select) {
  return element(
    "button",
    { type: "button", class: "link", onclick: () => select(node, "panel"), title: nodes.title[node] },
    element("span", { class: "mono" }, nodes.name[node]),
    element("small", {}, element("code", {}, tokenAt(nodes.pos[node]) || "–"), nodes.label[node] ?? ""),
  );
}

function table(caption, heads, rows) {
  const head = element(
    "thead",
    {},
    element(
      "tr",
      {},
      heads.map((text) => element("th", { scope: "col" }, text)),
    ),
  );
  return element("table", {}, element("caption", {}, caption), head, rows);
}

function overview(select) {
  const parts = [
    element("h2", {}, "The circuit"),
    element("p", { class: "hint" }, "Select a node to see what it reads and what reads it. Press ? for help."),
  ];
  if (data.logits.clean.length || data.logits.corrupted.length) parts.push(logitsTable());
  const sizes = [...nodes.name.keys()].filter((node) => !nodes.metric[node]);
  sizes.sort((a, b) => Math.abs(nodes.attribution[b] ?? 0) - Math.abs(nodes.attribution[a] ?? 0));
  if (sizes.length) {
    const rows = sizes
      .slice(0, 12)
      .map((node) =>
        element(
          "tr",
          {},
          element("td", { class: "shape-cell" }, symbol(node)),
          element("td", {}, nodeButton(node, select)),
          number(nodes.attribution[node]),
        ),
      );
    parts.push(table("Largest attributions (estimated)", ["", "node", "attribution"], element("tbody", {}, rows)));
  }
  if (data.reports.length) {
    parts.push(
      element("h3", {}, "How it was selected"),
      element(
        "ul",
        { class: "reports" },
        data.reports.map((line) => element("li", {}, line)),
      ),
    );
  }
  if (data.provenance)
    parts.push(element("details", {}, element("summary", {}, "Provenance"), element("pre", {}, data.provenance)));
  return parts;
}

function logitsTable() {
  const rows = Math.max(data.logits.clean.length, data.logits.corrupted.length);
  const cells = (entry) =>
    entry
      ? [
          element("td", { class: "mono" }, entry[0]),
          element("td", { class: "number" }, meter(entry[1]), `${(100 * entry[1]).toFixed(1)}%`),
        ]
      : [element("td"), element("td")];
  const body = Array.from({ length: rows }, (_, row) =>
    element("tr", {}, cells(data.logits.clean[row]), cells(data.logits.corrupted[row])),
  );
  return table("Next token (measured)", ["clean", "", "corrupted", ""], element("tbody", {}, body));
}

function meter(share) {
  const bar = element("i");
  bar.style.width = `${Math.min(100, 100 * share)}%`;
  return element("span", { class: "meter", "aria-hidden": "true" }, bar);
}

function nodeDetails(node, select) {
  const heading = element(
    "h2",
    { tabindex: "-1", id: "node-name" },
    symbol(node),
    element("span", { class: "mono" }, nodes.name[node]),
  );
  const parts = [heading];
  if (nodes.label[node]) parts.push(element("p", { class: "label" }, nodes.label[node]));
  parts.push(
    element(
      "dl",
      { class: "facts" },
      nodeFacts(node).map(([name, value, basis]) =>
        element("div", {}, element("dt", {}, name), element("dd", {}, value, basis && basisTag(basis))),
      ),
    ),
  );
  parts.push(...inputTables(node, select), ...outputTable(node, select));
  return parts;
}

const basisTag = (basis) => element("span", { class: `basis ${basis}` }, basis);

function nodeFacts(node) {
  const found = [["kind", nodes.kind[node]]];
  if (nodes.layer[node] !== null) found.push(["layer", String(nodes.layer[node])]);
  if (nodes.pos[node] !== null)
    found.push(["position", element("span", {}, `${nodes.pos[node]} `, element("code", {}, tokenAt(nodes.pos[node])))]);
  if (nodes.metric[node]) found.push(["clean − corrupted", signed(nodes.attribution[node]), "measured"]);
  else if (nodes.attribution[node] !== null) found.push(["attribution", signed(nodes.attribution[node]), "estimated"]);
  if (nodes.effect[node] !== null) found.push(["effect", signed(nodes.effect[node]), "measured"]);
  if (nodes.activation[node] !== null) {
    const baseline = nodes.baseline_activation[node];
    found.push([
      "activation",
      `${plain(nodes.activation[node])} clean${baseline === null ? "" : `, ${plain(baseline)} baseline`}`,
    ]);
  }
  if (nodes.influence[node] !== null) found.push(["influence", plain(nodes.influence[node])]);
  if (nodes.top_tokens[node].length) {
    found.push([
      "promotes",
      element(
        "span",
        { class: "tokens-list" },
        nodes.top_tokens[node].map((token) => element("code", {}, token)),
      ),
    ]);
  }
  return found;
}

function inputTables(node, select) {
  if (!inputs[node].length)
    return [element("h3", {}, "Inputs"), element("p", { class: "hint" }, "No edge of this graph ends here.")];
  const parts = [];
  const withHeads = inputs[node].filter((edge) => edges.heads[edge].length);
  if (withHeads.length) parts.push(element("h3", {}, "Heads"), ...headSummary(withHeads));
  const kinds = [...new Set(inputs[node].map((edge) => edges.kind[edge]))].sort((a, b) => a - b);
  const groups = kinds.map((kind) => [kind, inputs[node].filter((edge) => edges.kind[edge] === kind)]);
  const columns = withHeads.length ? ["from", "kind", "weight", "share", "heads"] : ["from", "kind", "weight", "share"];
  const bodies = groups.map(([kind, list]) =>
    edgeBody(list, edges.source, select, columns.length, groups.length > 1 && groupTitle(kind, list)),
  );
  parts.push(table(`Inputs (${inputs[node].length})`, columns, bodies));
  return parts;
}

function groupTitle(kind, list) {
  const [name, meaning] = data.kinds[kind];
  const share = list.reduce((sum, edge) => sum + shareOf(edge), 0);
  return `${name}${meaning ? `: ${meaning}` : ""} (${percent(share)})`;
}

function outputTable(node, select) {
  if (!outputs[node].length)
    return [element("h3", {}, "Outputs"), element("p", { class: "hint" }, "No edge of this graph starts here.")];
  return [
    table(
      `Outputs (${outputs[node].length})`,
      ["to", "kind", "weight", "its input"],
      edgeBody(outputs[node], edges.target, select, 4, ""),
    ),
  ];
}

// Rows of edges, strongest first; what is beyond the first rows waits behind a button that says how many.
function edgeBody(list, side, select, width, title) {
  const body = element("tbody", {});
  if (title)
    body.append(element("tr", { class: "group" }, element("th", { colspan: width, scope: "rowgroup" }, title)));
  const row = (edge) =>
    element(
      "tr",
      { "data-edge": edge },
      element("td", {}, nodeButton(side[edge], select)),
      element("td", {}, kindBadge(edge)),
      number(edges.weight[edge]),
      element("td", { class: "number" }, meter(shareOf(edge)), percent(shareOf(edge))),
      width === 5 && element("td", {}, headBars(edges.heads[edge], 34, 18)),
    );
  body.append(...list.slice(0, ROWS_AT_FIRST).map(row));
  if (list.length > ROWS_AT_FIRST) {
    const more = element(
      "tr",
      {},
      element(
        "td",
        { colspan: width },
        element(
          "button",
          { type: "button", class: "chip", onclick: () => more.replaceWith(...list.slice(ROWS_AT_FIRST).map(row)) },
          `show ${list.length - ROWS_AT_FIRST} weaker`,
        ),
      ),
    );
    body.append(more);
  }
  return body;
}

// Head loadings summed over the inputs of each kind: which heads do this node's work.
function headSummary(list) {
  const sums = new Map();
  for (const edge of list) {
    const kind = edges.kind[edge];
    const sum = sums.get(kind) ?? new Array(edges.heads[edge].length).fill(0);
    edges.heads[edge].forEach((value, head) => {
      sum[head] = (sum[head] ?? 0) + value;
    });
    sums.set(kind, sum);
  }
  return [...sums]
    .sort(([a], [b]) => a - b)
    .map(([kind, heads]) =>
      element(
        "div",
        { class: "heads" },
        element("span", { class: `badge kind-${data.kinds[kind][3]}` }, data.kinds[kind][0]),
        headBars(heads, 220, 44),
        element("small", {}, mainHead(heads)),
      ),
    );
}

function mainHead(heads) {
  const sizes = heads.map(Math.abs);
  const total = sizes.reduce((sum, size) => sum + size, 0);
  const head = sizes.indexOf(Math.max(...sizes));
  return total ? `head ${head}: ${signed(heads[head])} (${percent(sizes[head] / total)})` : "";
}

// One bar a head, up for positive and down for negative, about a common zero line.
function headBars(heads, width, height) {
  if (!heads || !heads.length) return "";
  const largest = Math.max(...heads.map(Math.abs)) || 1;
  const step = width / heads.length;
  const bars = heads.map((value, head) => {
    const size = (Math.abs(value) / largest) * (height / 2 - 1);
    const bar = drawing("rect", {
      x: head * step + step * 0.12,
      y: value < 0 ? height / 2 : height / 2 - size,
      width: step * 0.76,
      height: size,
      class: value < 0 ? "bar minus" : "bar",
    });
    bar.append(drawing("title", {}, `head ${head}: ${signed(value)}`));
    return bar;
  });
  const axis = drawing("path", { d: `M0 ${height / 2}H${width}`, class: "axis" });
  return drawing(
    "svg",
    {
      class: "head-bars",
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `heads: ${heads.map((value, head) => `${head} ${signed(value)}`).join(", ")}`,
    },
    axis,
    bars,
  );
}
