// The graph as typed arrays: what the page carries, unpacked, with the inputs and outputs of each node ranked.

import { shorten, visible } from "./text.js";

const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array };

function bytes(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const found = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) found[i] = text.charCodeAt(i);
  return found;
}

function unpack(column, length, missing = NaN) {
  return column ? new ARRAYS[column.type](bytes(column.data).buffer) : new Float32Array(length).fill(missing);
}

export async function readData(element) {
  let text = element.textContent;
  if (element.dataset.encoding === "gzip") {
    const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
    text = await new Response(stream).text();
  }
  return unpackGraph(JSON.parse(text));
}

function unpackGraph(data) {
  const { nodes, edges } = data;
  const n = nodes.id.length;
  const source = unpack(edges.source);
  const m = source.length;
  const nodeColumn = (name) => unpack(nodes[name], n);
  const graph = {
    ...data,
    n,
    m,
    id: nodes.id,
    number: new Map(nodes.id.map((id, node) => [id, node])),
    row: nodeColumn("row"),
    form: nodeColumn("form"),
    layer: nodeColumn("layer"),
    pos: nodeColumn("pos"),
    feature: nodeColumn("feature"),
    attribution: nodeColumn("attribution"),
    effect: nodeColumn("effect"),
    activation: nodeColumn("activation"),
    baseline: nodeColumn("baseline_activation"),
    influence: nodeColumn("influence"),
    kindOf: Array.from(nodeColumn("kind"), (kind) => nodes.kinds[kind]),
    siteOf: Array.from(nodeColumn("site"), (site) => nodes.sites[site]),
    topTokens: nodes.top_tokens.map((list) => list.map((token) => nodes.tokens[token])),
    more: nodes.more,
    source,
    target: unpack(edges.target),
    kind: unpack(edges.kind),
    weight: unpack(edges.weight),
    local: unpack(edges.local_weight, m),
    spread: unpack(edges.weight_abs, m),
    edgeMore: edges.more,
    headCount: edges.n_heads ? unpack(edges.n_heads) : new Uint8Array(m),
    headValues: unpack(edges.heads, 0),
  };
  graph.headStart = new Uint32Array(m + 1);
  for (let e = 0; e < m && edges.n_heads; e += 1) graph.headStart[e + 1] = graph.headStart[e] + graph.headCount[e];
  graph.chip = Array.from(graph.form, (form) => data.forms[form][1]); // shape and legend entry
  const ofKind = (...kinds) => [...graph.kindOf.keys()].filter((node) => kinds.includes(graph.kindOf[node]));
  graph.metrics = ofKind("metric");
  graph.targets = ofKind("logit", "probe"); // what the metric weighs
  graph.clean = data.graph.tokens?.clean ?? [];
  graph.corrupted = data.graph.tokens?.corrupted ?? graph.clean; // without a corrupted prompt nothing differs
  if (data.compare) {
    graph.nodeIn = unpack(nodes.in);
    graph.edgeIn = unpack(edges.in);
    graph.own = graph.weight; // what is only in B counts as its own weight here
    graph.weightA = graph.weight.map((weight, e) => (graph.edgeIn[e] === 2 ? 0 : weight));
    graph.weightB = unpack(edges.other_weight);
    graph.otherAttribution = unpack(nodes.other_attribution, n);
    graph.otherEffect = unpack(nodes.other_effect, n);
  }
  rank(graph);
  return graph;
}

// Sorts edges by |weight| and lists each node's inputs and outputs in that order.
export function rank(graph) {
  const { n, m, weight, source, target, kind } = graph;
  const order = new Uint32Array(m);
  const size = new Float64Array(m);
  let sorted = true;
  Object.assign(graph, { order, inputTotal: new Float64Array(n), total: 0 });
  graph.kindCount = new Uint32Array(graph.kinds.length);
  graph.kindTotal = new Float64Array(graph.kinds.length);
  for (let e = 0; e < m; e += 1) {
    order[e] = e;
    size[e] = Math.abs(weight[e]);
    sorted &&= !e || size[e] <= size[e - 1];
    graph.inputTotal[target[e]] += size[e];
    graph.kindCount[kind[e]] += 1;
    graph.kindTotal[kind[e]] += size[e];
    graph.total += size[e];
  }
  if (!sorted) order.sort((a, b) => size[b] - size[a] || a - b);
  graph.placeOf = sorted ? order : new Uint32Array(m);
  for (let place = 0; place < m && !sorted; place += 1) graph.placeOf[order[place]] = place;
  graph.inputs = lists(n, order, target);
  graph.outputs = lists(n, order, source);
}

function lists(n, order, end) {
  const start = new Uint32Array(n + 1);
  for (let i = 0; i < order.length; i += 1) start[end[i] + 1] += 1;
  for (let i = 0; i < n; i += 1) start[i + 1] += start[i];
  const next = start.slice();
  const items = new Uint32Array(order.length);
  for (let i = 0; i < order.length; i += 1) items[next[end[order[i]]]++] = order[i];
  return (node) => items.subarray(start[node], start[node + 1]);
}

// How often each number below `length` occurs.
export function tally(column, length) {
  const counts = new Uint32Array(length);
  for (let i = 0; i < column.length; i += 1) counts[column[i]] += 1;
  return counts;
}

export const headsOf = (graph, e) => graph.headValues.subarray(graph.headStart[e], graph.headStart[e + 1]);

export const share = (graph, e) => Math.abs(graph.weight[e]) / (graph.inputTotal[graph.target[e]] || 1);

export const strength = (graph, view, e) => Math.min(1, Math.sqrt(Math.abs(graph.weight[e]) / view.full));

export const isTop = (graph, node) => ["metric", "logit", "probe"].includes(graph.kindOf[node]);

export const isError = (graph, node) => graph.kindOf[node] === "error";

export const kindWords = (graph, node) => graph.forms[graph.form[node]][0];

export const labelOf = (graph, state, node) => state.labels.get(node) ?? "";

// Beside a drawn node: the reader's label, else a token it promotes, else its number.
export function caption(graph, state, node) {
  const label = labelOf(graph, state, node);
  const limits = graph.looks.captions;
  if (label) return shorten(visible(label, " "), limits.label);
  if (graph.kindOf[node] === "metric") return shorten(graph.metric, limits.metric);
  if (isTop(graph, node)) return shorten(visible(graph.more[node]?.token ?? graph.id[node]), limits.token);
  const promoted = graph.topTokens[node][0];
  if (promoted !== undefined) return `→${shorten(visible(promoted), limits.promoted)}`;
  return Number.isNaN(graph.feature[node]) ? "" : `f${graph.feature[node]}`;
}

export const tokenAt = (list, pos) => (pos >= 0 && list[pos] !== undefined ? visible(list[pos]) : "");
