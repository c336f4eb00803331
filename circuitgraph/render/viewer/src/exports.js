// What the reader takes away: the picture, the graph with labels and groups, the state, and Python that makes it again.

import { copy, download, drawing } from "./dom.js";
import { isError, strength } from "./data.js";
import { drawEdge } from "./layout.js";
import { edgeColour, edgeOpacity, edgeWidth, FONT, GUTTER, placeCaptions, readColours } from "./paint.js";
import { groupsOf, saveState } from "./state.js";
import { differs } from "./strip.js";
import { known, plural, shorten, visible } from "./text.js";

const EDGES_IN_CODE = 400;

class PathText {
  d = "";

  moveTo(x, y) {
    this.d += `M${x.toFixed(1)} ${y.toFixed(1)}`;
  }

  bezierCurveTo(...points) {
    this.d += `C${points.map((value) => value.toFixed(1)).join(" ")}`;
  }
}

export function pictureText(app) {
  const { graph, layout, view, state } = app;
  const colours = readColours();
  const tokens = layout.columns.some(({ pos }) => differs(graph, pos)) ? 2 : 1;
  const head = 46;
  const width = Math.max(520, GUTTER + layout.width + 12);
  const height = head + layout.height + 20 * tokens + 44;
  const text = (x, y, words, more = {}) => drawing("text", { x, y, fill: colours.ink, ...more }, visible(words, " "));
  const edges = [...view.edges].reverse().map((e) => {
    const pen = new PathText();
    drawEdge(pen, graph, layout, e);
    const strong = strength(graph, view, e);
    return drawing("path", { d: pen.d, fill: "none", stroke: colours[edgeColour(graph, e)], "stroke-width": edgeWidth(graph, view, strong).toFixed(2), "stroke-opacity": edgeOpacity(graph, view, strong).toFixed(2), "stroke-dasharray": graph.weight[e] < 0 ? graph.looks.lines.dash.join(" ") : null });
  });
  const nodes = view.nodes.map((node) => {
    const scale = layout.r[node] / 10;
    const minus = graph.attribution[node] < 0;
    return drawing("path", {
      d: graph.legend[graph.chip[node]][1],
      transform: `translate(${layout.x[node].toFixed(1)} ${layout.y[node].toFixed(1)}) scale(${scale.toFixed(3)})`,
      fill: minus ? colours.page : isError(graph, node) ? colours.muted : colours.positive,
      stroke: minus ? colours.negative : colours.page,
      "stroke-width": ((minus ? 2 : 1.2) / scale).toFixed(2),
    }, drawing("title", {}, visible(graph.id[node])));
  });
  const halo = { "font-size": 11, "text-anchor": "middle", stroke: colours.page, "stroke-width": 3, "stroke-linejoin": "round", "paint-order": "stroke" };
  const pen = app.painter.canvases.base.getContext("2d");
  pen.font = `11px ${FONT}`;
  const captions = placeCaptions(graph, layout, state, view.nodes, { k: 1, x: 0, y: 0 }, (words) => app.painter.width(pen, words)).map((each) => text(each.x.toFixed(1), each.y.toFixed(1), each.text, halo));
  const rows = layout.rows.filter((row) => row.count).map((row) => text(-8, row.y + row.height / 2 + 4, `${row.layer === null ? "" : `L${row.layer} `}${row.text}`, { "text-anchor": "end", "font-size": 11, fill: colours.muted }));
  const bands = layout.rows.filter((row) => row.layer !== null && row.layer % 2 === 0).map((row) => drawing("rect", { x: 8 - GUTTER, y: row.y, width: GUTTER - 8 + layout.width, height: row.height, fill: colours.band }));
  const strip = layout.columns.flatMap(({ pos, x, width: wide }) => {
    const changed = differs(graph, pos);
    const fit = (token) => shorten(visible(token ?? ""), Math.max(2, Math.floor(wide / 7)));
    const look = { "text-anchor": "middle", "font-size": 12, "font-family": "monospace" };
    return [
      changed && drawing("rect", { x: x + 1, y: layout.height + 6, width: wide - 2, height: 20 * tokens, rx: 4, fill: colours.mark }),
      text(x + wide / 2, layout.height + 20, fit(graph.clean[pos]), look),
      changed && text(x + wide / 2, layout.height + 40, fit(graph.corrupted[pos]), look),
    ];
  });
  let at = 0;
  const legend = graph.kinds.flatMap(([, name, , colour]) => {
    const x = at;
    at += 42 + name.length * 7;
    return [drawing("path", { d: `M${x} ${height - 14}h20`, stroke: colours[graph.compare ? "other" : colour], "stroke-width": 3 }), text(x + 26, height - 10, name, { "font-size": 11, fill: colours.muted })];
  });
  const title = `${graph.metric} circuit${graph.model ? ` of ${graph.model}` : ""}`;
  const facts = graph.facts.slice(0, 3).map(([name, value, word]) => `${name} ${value} (${word})`).join(" · ");
  const svg = drawing(
    "svg",
    { width: Math.ceil(width), height: Math.ceil(height), viewBox: `0 0 ${Math.ceil(width)} ${Math.ceil(height)}`, "font-family": FONT, role: "img" },
    drawing("title", {}, visible(title, " ")),
    drawing("rect", { width: "100%", height: "100%", fill: colours.page }),
    text(12, 20, title, { "font-size": 15, "font-weight": 600 }),
    text(12, 38, `${facts} · ${plural(view.nodes.length, "node")} and ${plural(view.edges.length, "edge")} shown of ${graph.n} and ${graph.m}; dashed: negative`, { "font-size": 11, fill: colours.muted }),
    drawing("g", { transform: `translate(${GUTTER} ${head})` }, bands, edges, nodes, captions, rows, strip),
    drawing("g", { transform: "translate(12 0)" }, legend),
  );
  return `${new XMLSerializer().serializeToString(svg)}\n`;
}

export const saveSvg = (app) => download("circuit.svg", "image/svg+xml", pictureText(app));

export async function savePng(app) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(pictureText(app))}`;
  await image.decode();
  const scale = Math.min(2, 16000 / Math.max(image.width, image.height));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width * scale, image.height * scale];
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  download("circuit.png", "image/png", await new Promise((done) => canvas.toBlob(done)));
}

// The graph of this page as a native file, with the reader's labels, notes, pins and groups: a row on a line and counts
// before them, so that the library reads it in pieces and sees when something of it is missing.
export function graphText(app) {
  const { graph, state } = app;
  const number = (value) => (known(value) ? value : null);
  const some = (entries) => Object.fromEntries(entries.filter(([, value]) => value !== null && value !== undefined));
  const inA = (column, i) => !graph.compare || column[i] !== 2;
  const nodes = graph.id.map((id, i) => ({
    id,
    kind: graph.kindOf[i],
    site: graph.siteOf[i],
    layer: number(graph.layer[i]),
    pos: number(graph.pos[i]),
    feature: number(graph.feature[i]),
    ...some([["attribution", number(graph.attribution[i])], ["effect", number(graph.effect[i])], ["activation", number(graph.activation[i])], ["baseline_activation", number(graph.baseline[i])], ["influence", number(graph.influence[i])]]),
    ...(graph.topTokens[i].length ? { top_tokens: graph.topTokens[i] } : {}),
    ...withoutWords(graph.more[i]),
    ...some([["label", state.labels.get(i)], ["note", state.notes.get(i)]]),
  }));
  const edges = [];
  const own = graph.own ?? graph.weight;
  for (let e = 0; e < graph.m; e += 1) {
    if (!inA(graph.edgeIn, e)) continue;
    const heads = graph.headValues.subarray(graph.headStart[e], graph.headStart[e + 1]);
    edges.push({
      source: graph.id[graph.source[e]],
      target: graph.id[graph.target[e]],
      kind: graph.kinds[graph.kind[e]][0],
      ...some([["weight", number(own[e])], ["local_weight", number(graph.local[e])], ["weight_abs", number(graph.spread[e])]]),
      ...(heads.length ? { heads: [...heads] } : {}),
      ...(graph.edgeMore[e] ?? {}),
    });
  }
  const kept = nodes.filter((_, i) => inA(graph.nodeIn, i));
  const facts = { ...graph.graph, pins: [...state.pins].map((node) => graph.id[node]), groups: groupsOf(graph, state) };
  if (graph.left_out.length) facts.reports = [...(facts.reports ?? []), ...graph.left_out.map((line) => `saved from the viewer: ${line}`)];
  const counts = { edges: edges.length, nodes: kept.length };
  const rows = (list) => (list.length ? `[\n${list.map((row) => JSON.stringify(row)).join(",\n")}\n]` : "[]");
  const head = Object.entries({ format: "circuitgraph", version: graph.version, counts, graph: facts });
  const parts = [...head.map(([name, value]) => [name, JSON.stringify(value)]), ["nodes", rows(kept)], ["edges", rows(edges)]];
  return `{\n${parts.map(([name, text]) => `"${name}": ${text}`).join(",\n")}\n}\n`;
}

function withoutWords(more = {}) {
  const { label, note, ...rest } = more;
  return rest;
}

export const saveGraph = (app) => download("circuit.json", "application/json", graphText(app));

export const stateText = (app) => `${JSON.stringify(saveState(app.graph, app.state), null, 1)}\n`;

export const saveStateFile = (app) => download("circuit-view.json", "application/json", stateText(app));

// Python that takes the pinned nodes (or, without pins, what is shown) out of the graph's file.
export function pythonText(app) {
  const { graph, state, view } = app;
  const quote = (value) => JSON.stringify(value).replace(/\u2028/g, "\\u2028").replace(/\u2029/g, "\\u2029");
  const rows = (items) => items.map((item) => `    ${item},\n`).join("");
  const edges = [...view.edges].filter((e) => !state.pins.size);
  const lines = ["import circuitgraph as cg", "", 'graph = cg.load("circuit.json")  # the file this page was drawn from'];
  if (edges.length && edges.length <= EDGES_IN_CODE) {
    const tuples = edges.map((e) => `(${quote(graph.id[graph.source[e]])}, ${quote(graph.id[graph.target[e]])}, ${quote(graph.kinds[graph.kind[e]][0])})`);
    lines.push(`edges = [  # shown, strongest first\n${rows(tuples)}]`, "circuit = graph.edge_subgraph(edges).copy()");
  } else {
    const nodes = state.pins.size ? [...new Set([...state.pins, ...graph.metrics])] : view.nodes;
    lines.push(`nodes = [  # ${state.pins.size ? "pinned, and the metric" : "shown"}\n${rows(nodes.map((node) => quote(graph.id[node])))}]`, "circuit = graph.subgraph(nodes).copy()");
  }
  for (const [name, map] of [["label", state.labels], ["note", state.notes]])
    for (const [node, words] of map) lines.push(`if ${quote(graph.id[node])} in circuit:\n    circuit.nodes[${quote(graph.id[node])}][${quote(name)}] = ${quote(words)}`);
  if (state.pins.size) lines.push(`circuit.graph["pins"] = ${quote([...state.pins].map((node) => graph.id[node]))}`);
  if (state.groups.length) lines.push(`circuit.graph["groups"] = ${quote(groupsOf(graph, state))}`);
  return `${lines.join("\n")}\n`;
}

export const copyPython = (app) => copy(pythonText(app)).then(() => app.say("Python copied"));

export const copyState = (app) => copy(stateText(app)).then(() => app.say("state copied as JSON"));
