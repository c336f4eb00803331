// Badges, bars and the tables of inputs and outputs.

import { button, drawing, element } from "./dom.js";
import { headsOf, kindWords, share } from "./data.js";
import { mainHead } from "./filter.js";
import { percent, plural, shorten, signed, visible } from "./text.js";

const AT_FIRST = 10; // rows of a long table

export const basis = (word) => element("span", { class: `basis ${word}` }, word);

export function edgeBadge(graph, e) {
  const [, name, meaning, colour] = graph.kinds[graph.kind[e]];
  return element("span", { class: `badge c-${colour}`, title: meaning }, name);
}

export const sideBadge = (graph, side) =>
  graph.compare && element("span", { class: `badge side-${side}` }, ["A+B", "A", "B"][side]);

export function symbol(graph, node) {
  const look = graph.attribution[node] < 0 ? "shape minus" : graph.kindOf[node] === "error" ? "shape soft" : "shape";
  return drawing("svg", { class: "symbol", viewBox: "-18 -13 36 26", "aria-hidden": "true" }, drawing("path", { d: graph.legend[graph.chip[node]][1], class: look }));
}

// A button that leads to a node: its name, its words, its token.
export function nodeLink(app, node) {
  const { graph, state, view } = app;
  const label = state.labels.get(node);
  const promoted = graph.topTokens[node][0];
  const words = label ? visible(label, " ") : promoted !== undefined ? `→${shorten(visible(promoted), 12)}` : kindWords(graph, node);
  const token = graph.pos[node] >= 0 ? graph.clean[graph.pos[node]] : undefined;
  const hidden = view.nodeOn[node] ? "" : "not in the picture now; selecting it brings it in";
  return element(
    "button",
    { type: "button", class: hidden ? "link off" : "link", title: hidden || kindWords(graph, node), onclick: () => app.select(node, "panel") },
    symbol(graph, node),
    element("span", { class: "names" }, element("span", { class: "mono" }, visible(graph.id[node])), element("small", {}, words, token !== undefined && element("code", {}, shorten(visible(token), 10)))),
  );
}

// One bar a head, up for positive and down for negative.
export function headBars(heads, width, height) {
  const largest = Math.max(...heads.map(Math.abs)) || 1;
  const step = width / heads.length;
  const bars = Array.from(heads, (value, head) => {
    const size = (Math.abs(value) / largest) * (height / 2 - 1);
    const y = value < 0 ? height / 2 : height / 2 - size;
    return drawing("rect", { x: head * step + 0.1 * step, y, width: 0.8 * step, height: size, class: value < 0 ? "bar minus" : "bar" });
  });
  const name = `heads: ${Array.from(heads, (value, head) => `${head} ${signed(value)}`).join(", ")}`;
  const frame = { class: "head-bars", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name };
  return drawing("svg", frame, drawing("title", {}, name), drawing("path", { d: `M0 ${height / 2}H${width}`, class: "axis" }), bars);
}

export function headWords(heads) {
  const total = heads.reduce((sum, value) => sum + Math.abs(value), 0);
  const main = mainHead(heads);
  return total ? `head ${main}: ${signed(heads[main])} (${percent(Math.abs(heads[main]) / total)})` : "no head";
}

// Head by head the sum over these edges, for each kind that has heads.
export function headSummary(graph, edges) {
  const sums = new Map();
  for (const e of edges) {
    const heads = headsOf(graph, e);
    if (!heads.length) continue;
    const sum = sums.get(graph.kind[e]) ?? { first: e, heads: new Float64Array(heads.length) };
    heads.forEach((value, head) => {
      sum.heads[head] += value;
    });
    sums.set(graph.kind[e], sum);
  }
  return [...sums].sort(([a], [b]) => a - b).map(([, { first, heads }]) =>
    element("div", { class: "heads" }, edgeBadge(graph, first), headBars(heads, 190, 40), element("small", {}, headWords(heads))),
  );
}

// A table of edges by their other end; `group` splits the rows by kind.
export function edgeTable(app, title, edges, end, group) {
  const { graph } = app;
  if (!edges.length) return element("p", { class: "hint" }, `No ${title.toLowerCase()}.`);
  const heads = edges.some((e) => graph.headCount[e]);
  const measured = edges.some((e) => Number.isFinite(graph.effect[end[e]]));
  const columns = ["node", "kind", "weight", "share", heads && "heads", measured && "effect"].filter(Boolean);
  const sums = graph.inputTotal;
  const body = element("tbody");
  const row = (e) => {
    const part = element("i");
    part.style.width = percent(Math.min(1, share(graph, e))).replace("<", "");
    return element(
      "tr",
      { "data-edge": e },
      element("th", { scope: "row" }, nodeLink(app, end[e])),
      element("td", {}, edgeBadge(graph, e), sideBadge(graph, graph.compare && graph.edgeIn[e])),
      element("td", { class: graph.weight[e] < 0 ? "number minus" : "number", title: Number.isFinite(graph.local[e]) ? `${signed(graph.local[e])} to the pre-activation` : null }, signed(graph.weight[e])),
      element("td", { class: "number" }, sums[graph.target[e]] ? [element("span", { class: "meter", "aria-hidden": "true" }, part), percent(share(graph, e))] : "–"),
      heads && element("td", {}, graph.headCount[e] ? headBars(headsOf(graph, e), Math.min(64, 7 * graph.headCount[e]), 20) : ""),
      measured && element("td", { class: "number" }, Number.isFinite(graph.effect[end[e]]) ? signed(graph.effect[end[e]]) : ""),
    );
  };
  const list = group ? [...edges].sort((a, b) => graph.kind[a] - graph.kind[b]) : [...edges];
  const fill = (most) => {
    const rows = [];
    const left = new Map();
    let seen = -1;
    for (const e of list) {
      const used = left.get(group ? graph.kind[e] : 0) ?? 0;
      if (used >= most) continue;
      left.set(group ? graph.kind[e] : 0, used + 1);
      if (group && graph.kind[e] !== seen) {
        seen = graph.kind[e];
        rows.push(element("tr", { class: "group" }, element("th", { colspan: columns.length, scope: "rowgroup" }, `${graph.kinds[seen][1]}${graph.kinds[seen][2] ? `: ${graph.kinds[seen][2]}` : ""}`)));
      }
      rows.push(row(e));
    }
    const rest = list.length - rows.filter((each) => each.dataset.edge).length;
    if (rest) rows.push(element("tr", {}, element("td", { colspan: columns.length }, button(`show ${plural(rest, "more", "more")}`, () => fill(Infinity)))));
    body.replaceChildren(...rows);
  };
  fill(group ? 6 : AT_FIRST);
  const titles = { share: "of the target's input: |weight| over the sum of |weight|", effect: "measured at the other node", weight: "estimated contribution to the metric" };
  return element(
    "table",
    {},
    element("caption", {}, `${title} (${edges.length})`),
    element("thead", {}, element("tr", {}, columns.map((name) => element("th", { scope: "col", title: titles[name] }, name)))),
    body,
  );
}
