// Which nodes and edges the state shows, and how many it hides for which reason.

import { METRIC_INPUTS } from "./state.js";
import { headsOf, isTop, share } from "./data.js";

const REASONS = ["of hidden kinds", "at hidden nodes", "of the other sign", "of other heads", "of hidden sides", "on no way to the chosen target"];

export function mainHead(heads) {
  let main = 0;
  for (let head = 1; head < heads.length; head += 1) if (Math.abs(heads[head]) > Math.abs(heads[main])) main = head;
  return main;
}

// {nodes, edges (strongest first), nodeOn, edgeOn, filtered, weight, full, hidden: [[count, reason]]}; `last` is the view
// before this one: while only limits move, nothing is asked of all edges again.
export function computeView(graph, state, last) {
  const filtered = filterEdges(graph, state, last);
  const { passing, passed, allowed, counts } = filtered;
  const limit = state.limit[state.mode];
  const extras = [...new Set([...state.pins, ...state.opened, state.selected])].filter((node) => node >= 0);
  const edgeOn = new Uint8Array(graph.m);
  const places = [];
  let [drawn, weight] = [0, 0];
  const draw = (e) => {
    if (edgeOn[e]) return;
    edgeOn[e] = 1;
    drawn += passing[e];
    weight += Math.abs(graph.weight[e]);
    places.push(graph.placeOf[e]);
  };
  if (state.mode === "backbone") backbone(graph, state, passing, limit, extras).forEach(draw);
  else for (let place = 0; place < graph.m && drawn < limit; place += 1) if (passing[graph.order[place]]) draw(graph.order[place]);
  state.path.forEach(draw);
  const edges = Uint32Array.from(places).sort();
  const nodeOn = new Uint8Array(graph.n);
  for (let i = 0; i < edges.length; i += 1) {
    const e = graph.order[edges[i]];
    edges[i] = e;
    nodeOn[graph.source[e]] = nodeOn[graph.target[e]] = 1;
  }
  for (const node of [...graph.metrics, ...extras]) nodeOn[node] = 1;
  if (!graph.m || (state.mode === "strongest" && limit >= passed))
    for (let node = 0; node < graph.n; node += 1) if (allowed[node] && !hasEdge(graph, node)) nodeOn[node] = 1;
  const nodes = [];
  for (let node = 0; node < graph.n; node += 1) if (nodeOn[node]) nodes.push(node);
  const weaker = state.mode === "backbone" ? "outside the backbone" : "weaker";
  const hidden = [[passed - drawn, weaker], ...counts.map((count, reason) => [count, REASONS[reason]])];
  const full = edges.length ? Math.abs(graph.weight[edges[Math.floor(edges.length / 20)]]) || 1 : 1; // drawn at full width
  return { nodes, edges, nodeOn, edgeOn, filtered, weight, full, hidden: hidden.filter(([count]) => count > 0) };
}

const hasEdge = (graph, node) => graph.inputs(node).length + graph.outputs(node).length > 0;

// {key, allowed by node, passing by edge, passed, counts by reason of what does not pass}
function filterEdges(graph, state, last) {
  const { kindsOff, chipsOff, sidesOff, sign, head, carried, target } = state;
  const chosen = [[...kindsOff], [...chipsOff], [...sidesOff], sign, head, carried, target, carried < 100 && [...state.pins]];
  const key = JSON.stringify([chosen, state.weights]);
  if (last?.filtered.key === key) return last.filtered;
  const allowed = allowedNodes(graph, state);
  const counts = REASONS.map(() => 0);
  const passing = new Uint8Array(graph.m).fill(1);
  let passed = graph.m;
  const open = !kindsOff.size && !chipsOff.size && !sidesOff.size && !sign && !head && carried >= 100 && target < 0;
  const below = target < 0 ? null : nodesBelow(graph, target);
  for (let e = 0; e < graph.m && !open; e += 1) {
    const reason = refusal(graph, state, allowed, below, e);
    if (reason < 0) continue;
    passing[e] = 0;
    passed -= 1;
    counts[reason] += 1;
  }
  return { key, allowed, passing, passed, counts };
}

// Which nodes have a way to this one, itself included.
function nodesBelow(graph, top) {
  const below = new Uint8Array(graph.n);
  below[top] = 1;
  const open = [top];
  for (const node of open)
    for (const e of graph.inputs(node)) {
      const source = graph.source[e];
      if (!below[source]) open.push(source);
      below[source] = 1;
    }
  return below;
}

function refusal(graph, state, allowed, below, e) {
  const [source, target] = [graph.source[e], graph.target[e]];
  if (state.kindsOff.has(graph.kind[e])) return 0;
  if (!allowed[source] || !allowed[target]) return 1;
  if (state.sign && graph.weight[e] < 0 !== (state.sign === "-")) return 2;
  if (state.head && graph.headCount[e] && state.head !== headName(graph, e)) return 3;
  if (graph.compare && state.sidesOff.has(graph.edgeIn[e])) return 4;
  if (below && !below[target] && source !== state.target) return 5;
  return -1;
}

// "layer.head" of the head that carries most of an attention edge.
export const headName = (graph, e) => `${graph.layer[graph.target[e]]}.${mainHead(headsOf(graph, e))}`;

// Nodes of shown kinds that together carry the chosen share of all |attribution| (or influence), strongest first.
function allowedNodes(graph, state) {
  const allowed = new Uint8Array(graph.n);
  for (let node = 0; node < graph.n; node += 1) allowed[node] = state.chipsOff.has(graph.chip[node]) ? 0 : 1;
  for (const node of graph.metrics) allowed[node] = 1;
  if (state.carried >= 100) return allowed;
  const size = nodeSizes(graph);
  const order = ranked(graph, size);
  let rest = (order.reduce((sum, node) => sum + size[node], 0) * state.carried) / 100;
  for (const node of order) {
    if (rest <= 0 && !state.pins.has(node)) allowed[node] = 0;
    rest -= size[node];
  }
  return allowed;
}

const nodeSizes = (graph) => graph.attribution.map((value) => Math.abs(value) || 0);

// All nodes below the metric and its targets, largest |attribution| first.
export const ranked = (graph, size = nodeSizes(graph)) =>
  [...size.keys()].filter((node) => !isTop(graph, node)).sort((a, b) => size[b] - size[a]);

// The strongest inputs of each node, grown backwards from the metric, strongest edge first, up to `limit` edges: all of
// it hangs together. Extra nodes bring their own strongest inputs and their strongest way up.
function backbone(graph, state, passing, limit, extras) {
  const inside = new Uint8Array(graph.n);
  const taken = new Set();
  const heap = []; // places in the order by |weight|; smallest first
  const include = (node) => {
    if (inside[node]) return;
    inside[node] = 1;
    let left = state.inputs * (isTop(graph, node) ? METRIC_INPUTS : 1);
    for (const e of graph.inputs(node)) {
      if (!left) break;
      if (!passing[e]) continue;
      push(heap, graph.placeOf[e]);
      left -= 1;
    }
  };
  const grow = (most) => {
    for (let count = 0; heap.length && count < most; count += 1) {
      const e = graph.order[pop(heap)];
      taken.add(e);
      include(graph.source[e]);
    }
  };
  graph.metrics.forEach(include);
  grow(limit);
  const up = extras.length ? waysUp(graph, passing) : null;
  for (const extra of extras) {
    heap.length = 0;
    climb(graph, up, inside, taken, extra);
    if (inside[extra]) continue;
    include(extra);
    grow(state.inputs);
  }
  return taken;
}

// From a node along its best way to the metric until the backbone is reached.
function climb(graph, up, inside, taken, node) {
  for (let at = node; !inside[at] && up.next[at] >= 0; at = graph.target[up.next[at]]) taken.add(up.next[at]);
}

function push(heap, value) {
  let i = heap.push(value) - 1;
  while (i) {
    const up = (i - 1) >> 1;
    if (heap[up] <= value) break;
    heap[i] = heap[up];
    i = up;
  }
  heap[i] = value;
}

function pop(heap) {
  const top = heap[0];
  const value = heap.pop();
  let i = 0;
  for (let child = 1; child < heap.length; child = 2 * i + 1) {
    if (child + 1 < heap.length && heap[child + 1] < heap[child]) child += 1;
    if (heap[child] >= value) break;
    heap[i] = heap[child];
    i = child;
  }
  if (heap.length) heap[i] = value;
  return top;
}

// For every node the first edge of its best way to the metric over the passing edges: that on which the product of each
// step's share of its target's input is largest.
function waysUp(graph, passing) {
  const best = new Float64Array(graph.n);
  const next = new Int32Array(graph.n).fill(-1);
  for (const metric of graph.metrics) best[metric] = 1;
  const upwards = [...Array(graph.n).keys()].sort((a, b) => graph.row[a] - graph.row[b]); // targets before sources
  for (const node of upwards)
    for (const e of graph.outputs(node)) {
      const value = share(graph, e) * best[graph.target[e]];
      if (value <= best[node] || !passing[e]) continue;
      best[node] = value;
      next[node] = e;
    }
  return { best, next };
}

export function strongestPath(graph, node, passing) {
  const { best, next } = waysUp(graph, passing);
  const path = [];
  for (let at = node; next[at] >= 0; at = graph.target[next[at]]) path.push(next[at]);
  return { path, product: best[node] };
}

// Nodes that match every term: words of the name, kind, tokens or label; L3, pos:5, #345.
export function findNodes(graph, state, query) {
  const terms = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!terms.length) return [];
  const found = [];
  for (let node = 0; node < graph.n; node += 1) {
    const words = [graph.id[node], graph.forms[graph.form[node]][0], state.labels.get(node), state.notes.get(node)];
    const tokens = [...graph.topTokens[node], graph.clean[graph.pos[node]], graph.corrupted[graph.pos[node]]];
    const text = [...words, ...tokens].filter((word) => word != null).join("\n").toLowerCase();
    if (terms.every((term) => matches(graph, node, term, text))) found.push(node);
  }
  const size = nodeSizes(graph);
  return found.sort((a, b) => size[b] - size[a]);
}

function matches(graph, node, term, text) {
  const [, key, value] = /^(l|pos:|#)(\d+)$/.exec(term) ?? [];
  if (key === "l") return graph.layer[node] === Number(value);
  if (key === "pos:") return graph.pos[node] === Number(value);
  if (key === "#") return graph.feature[node] === Number(value);
  return text.includes(term);
}
