// The circuit tray: pinned nodes and groups of them as a small graph with summed edges, and suggested groups.

import { button, byId, drawing, element, number, table, tint } from "./dom.js";
import { caption, kindWords } from "./data.js";
import { percent, plural, shorten, signed, visible } from "./text.js";
import { basis } from "./tables.js";

const BOX = { width: 128, height: 40, gapX: 64, gapY: 12 };
const SUGGESTIONS = 6;
const MOST = 200; // boxes of the small graph

export function showTray(app) {
  const { state } = app;
  const body = byId("tray-body");
  byId("tray").hidden = !state.tray && !state.pins.size;
  byId("tray-toggle").setAttribute("aria-expanded", String(state.tray));
  byId("tray-toggle").textContent = `${state.tray ? "▾" : "▸"} Circuit tray: ${plural(state.pins.size, "pinned node")}, ${plural(state.groups.length, "group")}`;
  byId("tray-share").textContent = state.pins.size ? shareWords(app) : "";
  body.hidden = !state.tray;
  if (!state.tray) return;
  body.replaceChildren(
    element("div", { class: "tray-side" }, controls(app)),
    element("div", { class: "tray-graph", tabindex: 0, role: "region", "aria-label": "graph of the pinned nodes and groups" }, state.pins.size ? smallGraph(app) : element("p", { class: "hint" }, "Pin nodes (p) to build a circuit of your own here; g groups them.")),
  );
}

// How much of the metric's direct input comes from pinned nodes.
function shareWords(app) {
  const { graph, state } = app;
  let [kept, all] = [0, 0];
  for (const metric of graph.metrics)
    for (const e of graph.inputs(metric)) {
      all += graph.weight[e];
      if (state.pins.has(graph.source[e])) kept += graph.weight[e];
    }
  return all ? `pins write ${percent(kept / all)} of what the metric reads directly (estimated)` : "";
}

function controls(app) {
  const { state } = app;
  const loose = looseNodes(state);
  const name = (group) => {
    const input = element("input", { type: "text", class: "group-name", "aria-label": "name of the group", maxlength: 60, onchange: (event) => app.renameGroup(group, event.target.value) });
    input.value = group.name;
    return element("li", {}, input, element("small", {}, plural(group.nodes.size, "node")), button("dissolve", () => app.dissolveGroup(group)));
  };
  const suggested = suggestions(app).map(({ words, nodes }) => button(`${words} (${nodes.length})`, () => app.makeGroup(words, nodes)));
  return [
    element(
      "div",
      { class: "actions" },
      button(`group ${plural(loose.length, "loose pin")}`, () => app.groupPins(), { disabled: loose.length < 2, title: "g" }),
      button("pin what is shown", () => app.pinShown()),
      button("clear", () => app.clearTray(), { disabled: !state.pins.size }),
    ),
    state.groups.length > 0 && element("ul", { class: "groups" }, state.groups.map(name)),
    suggested.length > 0 && element("p", { class: "suggest" }, element("small", {}, "Suggested groups: "), suggested),
  ];
}

export const looseNodes = (state) => [...state.pins].filter((node) => !state.groups.some((group) => group.nodes.has(node)));

// Groups that the data suggests: same words, same feature at several positions, same promoted token.
function suggestions(app) {
  const { graph, state, view } = app;
  const pool = state.pins.size > 1 ? looseNodes(state) : view.nodes;
  const found = new Map();
  const add = (key, words, node) => {
    if (!found.has(key)) found.set(key, { words, nodes: [] });
    found.get(key).nodes.push(node);
  };
  for (const node of pool) {
    const label = state.labels.get(node);
    if (label) add(`label ${label}`, visible(label, " "), node);
    if (graph.kindOf[node] === "feature") {
      const name = `${graph.siteOf[node]}/f${graph.feature[node]}`;
      add(`feature ${name}`, visible(name), node);
      if (graph.topTokens[node].length) add(`token ${graph.topTokens[node][0]}`, `→${shorten(visible(graph.topTokens[node][0]), 14)}`, node);
    }
    if (graph.kindOf[node] === "error") add("errors", "errors", node);
  }
  return [...found.values()].filter(({ nodes }) => nodes.length > 1).sort((a, b) => b.nodes.length - a.nodes.length).slice(0, SUGGESTIONS);
}

// Boxes (groups and loose pins, and the metric) and the sums of the edges between them.
export function aggregate(graph, state) {
  const boxes = state.groups.map((group) => ({ words: group.name, nodes: [...group.nodes], group: true }));
  for (const node of looseNodes(state)) boxes.push({ words: caption(graph, state, node) || kindWords(graph, node), nodes: [node] });
  for (const metric of graph.metrics) if (!state.pins.has(metric)) boxes.push({ words: graph.metric, nodes: [metric] });
  const boxOf = new Int32Array(graph.n).fill(-1);
  boxes.slice(0, MOST).forEach(({ nodes }, box) => nodes.forEach((node) => (boxOf[node] = box)));
  const sums = new Map();
  for (let e = 0; e < graph.m; e += 1) {
    const [from, to] = [boxOf[graph.source[e]], boxOf[graph.target[e]]];
    if (from < 0 || to < 0 || from === to) continue;
    const key = from * MOST + to;
    if (!sums.has(key)) sums.set(key, { from, to, weight: 0, kinds: new Map() });
    const sum = sums.get(key);
    sum.weight += graph.weight[e];
    sum.kinds.set(graph.kind[e], (sum.kinds.get(graph.kind[e]) ?? 0) + Math.abs(graph.weight[e]));
  }
  return { boxes: boxes.slice(0, MOST), edges: [...sums.values()] };
}

function smallGraph(app) {
  const { graph, state } = app;
  const { boxes, edges } = aggregate(graph, state);
  const mean = (nodes, column) => nodes.reduce((sum, node) => sum + (column[node] || 0), 0) / nodes.length;
  const ranks = [...new Set(boxes.map((box) => Math.round(mean(box.nodes, graph.row))))].sort((a, b) => b - a);
  const filled = ranks.map(() => 0);
  for (const box of [...boxes].sort((a, b) => mean(a.nodes, graph.pos) - mean(b.nodes, graph.pos))) {
    const rank = ranks.indexOf(Math.round(mean(box.nodes, graph.row)));
    box.x = rank * (BOX.width + BOX.gapX) + 8;
    box.slot = filled[rank]++;
    box.rank = rank;
  }
  const most = Math.max(...filled);
  const height = most * (BOX.height + BOX.gapY) + 16;
  for (const box of boxes) box.y = 8 + (box.slot + (most - filled[box.rank]) / 2) * (BOX.height + BOX.gapY);
  const largest = Math.max(...edges.map(({ weight }) => Math.abs(weight)), 1e-12);
  const width = ranks.length * (BOX.width + BOX.gapX) - BOX.gapX + 16;
  const lines = [...edges].sort((a, b) => Math.abs(a.weight) - Math.abs(b.weight)).map((edge) => {
    const [a, b] = [boxes[edge.from], boxes[edge.to]];
    const [x0, y0, x1, y1] = [a.x + BOX.width, a.y + BOX.height / 2, b.x, b.y + BOX.height / 2];
    const bend = Math.max(30, (x1 - x0) / 2);
    const strong = Math.sqrt(Math.abs(edge.weight) / largest);
    const kind = [...edge.kinds].sort((p, q) => q[1] - p[1])[0][0];
    const names = [...edge.kinds.keys()].map((each) => graph.kinds[each][1]).join(", ");
    const path = { class: edge.weight < 0 ? "sum dashed" : "sum", d: `M${x0} ${y0}C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}`, "stroke-width": 0.6 + 5 * strong, "stroke-opacity": 0.25 + 0.7 * strong };
    return [tint(graph.kinds[kind][3], drawing("path", path, drawing("title", {}, `${visible(a.words, " ")} → ${visible(b.words, " ")}: ${signed(edge.weight)} (${names})`))), strong > 0.4 && x1 > x0 && drawing("text", { class: "sum-text", x: x1 - 6, y: y1 - 4 - 2 * strong, "text-anchor": "end" }, signed(edge.weight))];
  });
  const frames = boxes.map((box) => {
    const node = box.nodes[0];
    const second = box.group ? plural(box.nodes.length, "node") : visible(graph.id[node]);
    return drawing(
      "g",
      { transform: `translate(${box.x} ${box.y})`, class: box.group ? "box group" : "box", onclick: () => app.select(node) },
      drawing("rect", { width: BOX.width, height: BOX.height, rx: box.group ? 8 : 3 }),
      drawing("text", { x: 8, y: 17 }, shorten(visible(box.words, " "), 18)),
      drawing("text", { x: 8, y: 32, class: "second" }, shorten(second, 20)),
    );
  });
  return [
    drawing("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${plural(boxes.length, "box", "boxes")}, ${plural(edges.length, "summed edge")}` }, lines, frames),
    edges.length ? sumTable(boxes, edges, graph) : element("p", { class: "hint" }, "No edge runs between these."),
  ];
}

function sumTable(boxes, edges, graph) {
  const rows = [...edges].sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight)).slice(0, 40);
  const row = ({ from, to, weight, kinds }) => [visible(boxes[from].words, " "), visible(boxes[to].words, " "), [...kinds.keys()].map((kind) => graph.kinds[kind][1]).join(", "), number(signed(weight))];
  return element("details", {}, element("summary", {}, "as a table"), table(["Summed edges ", basis("estimated")], ["from", "to", "kinds", "weight"], rows.map(row)));
}
