// Badges, bars and the tables of inputs and outputs.

import { button, drawing, element, number, table, tint } from "./dom.js";
import { headsOf, kindWords, share } from "./data.js";
import { mainHead } from "./filter.js";
import { SIDES } from "./paint.js";
import { known, many, percent, shorten, signed, visible } from "./text.js";

const AT_FIRST = 10; // rows of a long table

export const basis = (word) => element("span", { class: `basis ${word}` }, word);

export function edgeBadge(graph, e) {
  const [, name, meaning, colour] = graph.kinds[graph.kind[e]];
  return tint(colour, element("span", { class: "badge", title: meaning }, name));
}

export const sideBadge = (graph, side) =>
  graph.compare && tint(SIDES[side], element("span", { class: "badge" }, ["A+B", "A", "B"][side]));

export function symbol(graph, node) {
  const look = graph.attribution[node] < 0 ? "shape minus" : graph.kindOf[node] === "error" ? "shape soft" : "shape";
  return drawing("svg", { class: "symbol", viewBox: "-18 -13 36 26", "aria-hidden": "true" }, drawing("path", { d: graph.legend[graph.chip[node]][1], class: look }));
}

// A button that leads to a node: its name, its words, its token.
export function nodeLink(app, node) {
  const { graph, state } = app;
  const label = state.labels.get(node);
  const promoted = graph.topTokens[node][0];
  const words = label ? visible(label, " ") : promoted !== undefined ? `→${shorten(visible(promoted), 12)}` : kindWords(graph, node).replace("token ", "");
  const token = graph.pos[node] >= 0 ? graph.clean[graph.pos[node]] : undefined;
  const link = element(
    "button",
    { type: "button", "data-node": node, onclick: () => app.select(node, "panel") },
    symbol(graph, node),
    element("span", { class: "names" }, element("span", { class: "mono" }, visible(graph.id[node])), element("small", {}, words, token !== undefined && element("code", {}, shorten(visible(token), 10)))),
  );
  markLink(app, link);
  return link;
}

export function markLink({ graph, view }, link) {
  const shown = view.nodeOn[link.dataset.node];
  link.className = shown ? "link" : "link off";
  const node = Number(link.dataset.node);
  link.title = `${visible(graph.id[node])}, ${kindWords(graph, node)}${shown ? "" : "; not in the picture now, selecting it brings it in"}`;
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
  const measured = edges.some((e) => known(graph.effect[end[e]]));
  const columns = ["node", "kind", "weight", "share", heads && "heads", measured && "effect"];
  const row = (e) => {
    const part = element("i");
    part.style.width = `${100 * Math.min(1, share(graph, e))}%`;
    const effect = graph.effect[end[e]];
    const weight = number(signed(graph.weight[e]), graph.weight[e] < 0);
    if (known(graph.local[e])) weight.title = `${signed(graph.local[e])} to the pre-activation`;
    return [
      nodeLink(app, end[e]),
      [edgeBadge(graph, e), sideBadge(graph, graph.compare && graph.edgeIn[e])],
      weight,
      number([!measured && element("span", { class: "meter", "aria-hidden": "true" }, part), percent(share(graph, e))]),
      graph.headCount[e] ? headBars(headsOf(graph, e), Math.min(48, 7 * graph.headCount[e]), 20) : "",
      number(known(effect) ? signed(effect) : ""),
    ];
  };
  const list = group ? [...edges].sort((a, b) => graph.kind[a] - graph.kind[b]) : [...edges];
  const whole = element("div");
  const across = (name, child, more) => element("tr", { class: "group" }, element(name, { colspan: 6, ...more }, child));
  const fill = (most) => {
    const left = new Map();
    const shown = list.filter((e) => {
      const kind = group ? graph.kind[e] : 0;
      left.set(kind, (left.get(kind) ?? 0) + 1);
      return left.get(kind) <= most;
    });
    const made = table(`${title} (${edges.length})`, columns, shown.map(row));
    const rows = [...made.tBodies[0].rows];
    shown.forEach((e, i) => {
      rows[i].dataset.edge = e;
      const [, name, meaning] = graph.kinds[graph.kind[e]];
      if (group && graph.kind[e] !== graph.kind[shown[i - 1]]) rows[i].before(across("th", meaning ? `${name}: ${meaning}` : name, { scope: "rowgroup" }));
    });
    if (shown.length < list.length) made.tBodies[0].append(across("td", button(`show ${many(list.length - shown.length)} more`, () => fill(Infinity))));
    whole.replaceChildren(made);
  };
  fill(group ? 6 : AT_FIRST);
  return whole;
}
