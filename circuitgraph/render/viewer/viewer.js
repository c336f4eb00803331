// What is selected and what is shown, and the keys, clicks and filters that change it.

const mostDrawn = Math.min(edgeCount, data.most_drawn);
const DRAWN_AT_FIRST = 500; // a graph with more edges starts with its 300 strongest: the picture stays readable
const state = {
  limit: mostDrawn > DRAWN_AT_FIRST ? 300 : mostDrawn,
  kinds: new Set(data.kinds.keys()),
  hideErrors: false,
  query: "",
  matches: [],
  selected: -1,
  column: null,
  drawn: [],
};

const isHidden = (node) => state.hideErrors && nodes.error[node];

function refilter() {
  let byKind = 0;
  let byError = 0;
  const passing = [];
  for (let edge = 0; edge < edgeCount; edge += 1) {
    if (!state.kinds.has(edges.kind[edge])) byKind += 1;
    else if (isHidden(edges.source[edge]) || isHidden(edges.target[edge])) byError += 1;
    else passing.push(edge);
  }
  state.drawn = passing.slice(0, state.limit);
  state.hidden = { weaker: passing.length - state.drawn.length, "of hidden kinds": byKind, "at hidden errors": byError };
  drawEdges(state.drawn);
  refocus();
}

function statusText() {
  if (data.statement && !nodeCount) return data.statement;
  const shown = nodeCount - nodes.error.filter((_, node) => isHidden(node)).length;
  const weight = state.drawn.reduce((sum, edge) => sum + Math.abs(edges.weight[edge]), 0);
  const parts = [
    `${shown} of ${plural(nodeCount, "node")}`,
    `${state.drawn.length} of ${plural(edgeCount, "edge")} drawn`,
  ];
  if (weightTotal) parts.push(`${percent(weight / weightTotal)} of the edge weight`);
  const hidden = Object.entries(state.hidden).filter(([, count]) => count);
  if (hidden.length)
    parts.push(`hidden: ${hidden.map(([why, count]) => `${count.toLocaleString("en")} ${why}`).join(", ")}`);
  if (state.selected >= 0) {
    const own = (sides) => state.drawn.filter((edge) => sides[edge] === state.selected).length;
    const all = [inputs[state.selected].length, outputs[state.selected].length];
    const which = `${own(edges.target)} of ${plural(all[0], "input")}, ${own(edges.source)} of ${plural(all[1], "output")}`;
    parts.push(`${nodes.name[state.selected]}: ${which} drawn`);
  }
  if (state.query)
    parts.push(`${plural(state.matches.length, "match").replace("matchs", "matches")} for “${state.query}”`);
  return parts.join(" · ");
}

// Which nodes and edges stand out now: around the selected node, else the search's matches, else one column.
function refocus() {
  const around = (centre) => {
    const near = state.drawn.filter((edge) => edges.source[edge] === centre || edges.target[edge] === centre);
    emphasise(new Set([centre, ...near.flatMap((edge) => [edges.source[edge], edges.target[edge]])]), new Set(near));
  };
  const among = (list) => {
    const kept = new Set(list);
    emphasise(
      kept,
      new Set(state.drawn.filter((edge) => kept.has(edges.source[edge]) && kept.has(edges.target[edge]))),
    );
  };
  if (state.selected >= 0) around(state.selected);
  else if (state.query) among(state.matches);
  else if (state.column !== null) among([...nodes.name.keys()].filter((node) => nodes.pos[node] === state.column));
  else emphasise(null, null);
  markNodes(state.selected, isHidden);
  byId("status").textContent = statusText();
  for (const cell of byId("tokens").children) {
    const at = state.selected >= 0 ? nodes.pos[state.selected] : state.column;
    cell.classList.toggle(
      "current",
      (state.selected >= 0 || state.column !== null) && cell.dataset.pos === String(at ?? ""),
    );
    cell.setAttribute("aria-pressed", state.selected < 0 && state.column !== null && cell.dataset.pos === String(at));
  }
}

// Select a node (-1: none). `from` says where the user is, so that the focus stays there.
function select(node, from) {
  if (node >= 0 && isHidden(node)) setErrorsHidden(false);
  state.selected = node;
  if (node >= 0) state.column = null;
  showPanel(node, select);
  refocus();
  if (node < 0) return;
  reveal(node);
  if (from === "panel") byId("node-name").focus({ preventScroll: true });
  else if (from !== "search") nodeElements[node].focus({ preventScroll: true });
}

function clear() {
  Object.assign(state, { query: "", matches: [], column: null });
  byId("search").value = "";
  select(-1);
  refilter();
}

function setLimit(limit) {
  state.limit = Math.min(mostDrawn, Math.max(0, Math.round(limit) || 0));
  byId("count").value = state.limit;
  byId("strongest").value = edgeCount ? Math.round((1000 * Math.log1p(state.limit)) / Math.log1p(mostDrawn)) : 0;
  byId("strongest").setAttribute("aria-valuetext", plural(state.limit, "edge"));
  refilter();
}

function setErrorsHidden(hidden) {
  state.hideErrors = hidden;
  byId("errors").setAttribute("aria-pressed", hidden);
  if (hidden && state.selected >= 0 && nodes.error[state.selected]) select(-1);
  refilter();
}

function search(query) {
  state.query = query.trim();
  state.matches = findNodes(state.query);
  if (state.query) select(-1);
  refilter();
}

function nextMatch() {
  const visible = state.matches.filter((node) => !isHidden(node));
  if (visible.length) select(visible[(visible.indexOf(state.selected) + 1) % visible.length], "search");
}

function walk(across, up) {
  const next = state.selected < 0 ? startNode() : nearestNode(state.selected, across, up, (node) => !isHidden(node));
  if (next >= 0) select(next);
}

function follow(lists, side) {
  if (state.selected < 0) return walk(0, 0);
  const edge = lists[state.selected].find((each) => !isHidden(side[each]));
  if (edge !== undefined) select(side[edge]);
}

const KEYS = {
  ArrowLeft: () => walk(-1, 0),
  ArrowRight: () => walk(1, 0),
  ArrowUp: () => walk(0, 1),
  ArrowDown: () => walk(0, -1),
  "[": () => follow(inputs, edges.source),
  "]": () => follow(outputs, edges.target),
  "/": () => byId("search").focus(),
  Escape: clear,
  "?": () => byId("help").showModal(),
  "+": () => zoomAround(1.2),
  "-": () => zoomAround(1 / 1.2),
  0: fitZoom,
};

function onKey(event) {
  const typing = event.target.closest("input, dialog");
  if (event.ctrlKey || event.metaKey || (typing && (event.key !== "Escape" || byId("help").open))) return;
  if (event.altKey && event.key.startsWith("Arrow")) return;
  if (event.target.closest("#panel") && event.key.startsWith("Arrow")) return; // the panel scrolls
  if ((event.key === "Enter" || event.key === " ") && event.target.closest("[data-node]")) {
    event.preventDefault();
    return select(Number(event.target.closest("[data-node]").dataset.node));
  }
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  if (typing) event.target.blur();
  action();
}

function tooltipLines(target) {
  if (target.dataset.node !== undefined) {
    const node = Number(target.dataset.node);
    const lines = nodeFacts(node).map(([name, value, basis]) => [name, value, basis]);
    return [
      element("b", { class: "mono" }, nodes.name[node]),
      nodes.label[node] && element("p", {}, nodes.label[node]),
      ...factLines(lines),
    ];
  }
  const edge = Number(target.dataset.edge);
  const lines = [
    ["weight", signed(edges.weight[edge]), "estimated"],
    ["share of input", percent(shareOf(edge))],
  ];
  if (edges.local_weight[edge] !== null) lines.push(["to pre-activation", signed(edges.local_weight[edge])]);
  if (edges.heads[edge].length) lines.push(["mostly", mainHead(edges.heads[edge])]);
  return [
    element("p", {}, kindBadge(edge), " ", data.kinds[edges.kind[edge]][1]),
    element("p", { class: "mono" }, `${nodes.name[edges.source[edge]]} → ${nodes.name[edges.target[edge]]}`),
    ...factLines(lines),
  ];
}

const factLines = (lines) =>
  lines.map(([name, value, basis]) =>
    element("div", {}, element("span", {}, name), element("span", {}, value, basis && basisTag(basis))),
  );

function onHover(event) {
  const target = event.target.closest("[data-node], [data-edge]");
  const tooltip = byId("tooltip");
  tooltip.hidden = !target;
  if (!target) return;
  if (tooltip.target !== target) {
    tooltip.target = target;
    tooltip.replaceChildren(...tooltipLines(target).filter(Boolean));
  }
  const left =
    event.clientX + 16 + tooltip.offsetWidth > window.innerWidth
      ? event.clientX - tooltip.offsetWidth - 12
      : event.clientX + 16;
  const top = Math.min(event.clientY + 16, window.innerHeight - tooltip.offsetHeight - 8);
  tooltip.style.left = `${Math.max(4, left)}px`;
  tooltip.style.top = `${Math.max(4, top)}px`;
}

function onGridClick(event) {
  const node = event.target.closest("[data-node]");
  const edge = event.target.closest("[data-edge]");
  if (node) return select(Number(node.dataset.node));
  if (!edge) return select(-1);
  const [source, target] = [edges.source[edge.dataset.edge], edges.target[edge.dataset.edge]];
  select(state.selected === target ? source : target); // an edge leads to its other end
}

function onTokenClick(event) {
  const cell = event.target.closest(".token");
  if (!cell || cell.dataset.pos === "") return;
  const pos = Number(cell.dataset.pos);
  select(-1);
  state.column = state.column === pos ? null : pos;
  refocus();
}

function showHeader() {
  const [first] = data.facts;
  byId("title").textContent = first ? `${first[0]} circuit` : "circuit";
  byId("model").textContent = data.model;
  document.title = `${byId("title").textContent}${data.model ? ` · ${data.model}` : ""}`;
  const { clean, corrupted } = data.prompts;
  for (const [side, tokens, other] of [
    ["clean", clean, corrupted],
    ["corrupted", corrupted, clean],
  ]) {
    if (!tokens.length) continue;
    const pieces = tokens.map((token, pos) => element(token === other[pos] ? "span" : "mark", {}, token));
    const line = element("dd", {}, pieces);
    byId("prompts").append(element("div", {}, element("dt", {}, side), line));
    line.scrollTop = (line.querySelector("mark")?.offsetTop ?? 0) - 20; // a long prompt shows what differs
  }
  for (const [name, value, basis, explanation] of data.facts) {
    byId("facts").append(
      element("div", { title: explanation }, element("dt", {}, name), element("dd", {}, value, basisTag(basis))),
    );
  }
}

function showFilters() {
  byId("count").max = mostDrawn;
  for (const [kind, [name, meaning, count, colour]] of data.kinds.entries()) {
    const toggle = (event) => {
      if (!state.kinds.delete(kind)) state.kinds.add(kind);
      event.currentTarget.setAttribute("aria-pressed", state.kinds.has(kind));
      refilter();
    };
    byId("kinds").append(
      element(
        "button",
        { type: "button", class: `chip kind-${colour}`, "aria-pressed": "true", title: meaning, onclick: toggle },
        element("i", { class: "swatch" }),
        name,
        element("small", {}, count.toLocaleString("en")),
      ),
    );
  }
  const errors = nodes.error.filter(Boolean).length;
  byId("errors").append(element("small", {}, String(errors)));
  byId("errors").disabled = !errors;
  byId("legend").append(
    ...data.legend.map(([path, name]) =>
      element(
        "span",
        {},
        drawing(
          "svg",
          { viewBox: "-13 -8 26 16", class: "symbol positive", "aria-hidden": "true" },
          drawing("path", { d: path, class: "shape" }),
        ),
        name,
      ),
    ),
  );
}

function listen() {
  byId("strongest").addEventListener("input", (event) =>
    setLimit(Math.expm1((event.target.value / 1000) * Math.log1p(mostDrawn))),
  );
  byId("count").addEventListener("change", (event) => setLimit(Number(event.target.value)));
  byId("errors").addEventListener("click", () => setErrorsHidden(!state.hideErrors));
  byId("search").addEventListener("input", (event) => search(event.target.value));
  byId("search").addEventListener("keydown", (event) => event.key === "Enter" && nextMatch());
  byId("zoom-in").addEventListener("click", () => zoomAround(1.2));
  byId("zoom-out").addEventListener("click", () => zoomAround(1 / 1.2));
  byId("zoom-fit").addEventListener("click", fitZoom);
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  byId("tokens").addEventListener("click", onTokenClick);
  canvas.addEventListener("click", onGridClick);
  canvas.addEventListener("pointermove", onHover);
  canvas.addEventListener("pointerleave", () => {
    byId("tooltip").hidden = true;
  });
  stage.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      zoomAround(event.deltaY < 0 ? 1.15 : 1 / 1.15, event.clientX, event.clientY);
    },
    { passive: false },
  );
  document.addEventListener("keydown", onKey);
}

showHeader();
showFilters();
buildGrid();
listen();
showPanel(-1, select);
setLimit(state.limit);
fitZoom();
if (nodeCount) reveal(startNode());
