// What the reader chose: defaults, and the way into the URL's hash, into JSON and back.

export const INPUTS = 3; // strongest inputs a node keeps in the backbone
export const METRIC_INPUTS = 4; // times as many at the metric and its targets, where all paths end
const BACKBONE_EDGES = 60; // what a reader takes in at once
const DRAWN_EDGES = 2000;

export function freshState(graph) {
  const state = {
    mode: "backbone",
    inputs: INPUTS,
    limit: { backbone: Math.min(graph.m, BACKBONE_EDGES), strongest: Math.min(graph.m, DRAWN_EDGES) },
    kindsOff: new Set(),
    chipsOff: new Set(),
    sidesOff: new Set(),
    sign: "",
    head: "",
    carried: 100,
    target: -1,
    weights: "",
    query: "",
    matches: [],
    column: null,
    selected: -1,
    opened: new Set(),
    path: [],
    pins: new Set(),
    groups: [],
    labels: new Map(),
    notes: new Map(),
    theme: "",
    tray: false,
  };
  for (const [row, { label, note }] of Object.entries(graph.more)) {
    if (label) state.labels.set(Number(row), String(label));
    if (note) state.notes.set(Number(row), String(note));
  }
  for (const pin of listOf(graph.graph.pins)) addNode(graph, state.pins, pin);
  for (const group of listOf(graph.graph.groups)) addGroup(graph, state, group);
  return state;
}

const listOf = (value) => (Array.isArray(value) ? value : []);

function addNode(graph, set, id) {
  const node = graph.number.get(id);
  if (node !== undefined) set.add(node);
}

// A group is {label, nodes: [ids]}, or [label, id, ...] as other tools write it.
function addGroup(graph, state, group) {
  const [name, ids] = Array.isArray(group) ? [group[0], group.slice(1)] : [group?.label, listOf(group?.nodes)];
  const nodes = new Set();
  for (const id of ids) addNode(graph, nodes, id);
  for (const node of nodes) state.pins.add(node);
  if (nodes.size) state.groups.push({ name: String(name ?? "group"), nodes });
}

const ids = (graph, nodes) => [...nodes].map((node) => graph.id[node]);

export const groupsOf = (graph, state) => state.groups.map(({ name, nodes }) => ({ label: name, nodes: ids(graph, nodes) }));

const texts = (graph, map) => Object.fromEntries([...map].map(([node, text]) => [graph.id[node], text]));

// The state as JSON values; what stands at its default is left out.
export function saveState(graph, state) {
  const all = {
    mode: state.mode,
    inputs: state.inputs,
    backbone: state.limit.backbone,
    strongest: state.limit.strongest,
    kinds_off: [...state.kindsOff].map((kind) => graph.kinds[kind][0]),
    nodes_off: [...state.chipsOff].map((chip) => graph.legend[chip][0]),
    sides_off: [...state.sidesOff],
    sign: state.sign,
    head: state.head,
    carried: state.carried,
    target: graph.id[state.target] ?? null,
    weights: state.weights,
    search: state.query,
    column: state.column,
    selected: graph.id[state.selected] ?? null,
    opened: ids(graph, state.opened),
    path: state.path.map((e) => [graph.id[graph.source[e]], graph.id[graph.target[e]], graph.kinds[graph.kind[e]][0]]),
    pins: ids(graph, state.pins),
    groups: groupsOf(graph, state),
    labels: texts(graph, state.labels),
    notes: texts(graph, state.notes),
    theme: state.theme,
    tray: state.tray,
  };
  return all;
}

export function stateDifference(saved, defaults) {
  return Object.fromEntries(
    Object.entries(saved).filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(defaults[key])),
  );
}

// A state that was saved, over the defaults; what does not fit this graph is passed over.
export function loadState(graph, saved) {
  const state = freshState(graph);
  const given = (key, test) => saved[key] !== undefined && test(saved[key]);
  const isCount = (value) => Number.isInteger(value) && value >= 0;
  const isText = (value) => typeof value === "string";
  if (given("mode", (value) => value === "strongest" || value === "backbone")) state.mode = saved.mode;
  if (given("inputs", isCount)) state.inputs = Math.max(1, saved.inputs);
  for (const mode of ["backbone", "strongest"])
    if (given(mode, isCount)) state.limit[mode] = Math.min(graph.m, saved[mode]);
  for (const name of listOf(saved.kinds_off)) pick(state.kindsOff, graph.kinds, name);
  for (const name of listOf(saved.nodes_off)) pick(state.chipsOff, graph.legend, name);
  for (const side of listOf(saved.sides_off)) if ([0, 1, 2].includes(side)) state.sidesOff.add(side);
  if (["+", "-"].includes(saved.sign)) state.sign = saved.sign;
  if (given("head", isText)) state.head = saved.head;
  if (given("carried", isCount)) state.carried = Math.min(100, saved.carried);
  if (graph.compare && ["A", "B", "B-A"].includes(saved.weights)) state.weights = saved.weights;
  if (given("search", isText)) state.query = saved.search;
  if (given("column", isCount)) state.column = saved.column;
  state.selected = graph.number.get(saved.selected) ?? -1;
  state.target = graph.targets.find((node) => graph.id[node] === saved.target) ?? -1;
  for (const id of listOf(saved.opened)) addNode(graph, state.opened, id);
  for (const [source, target, kind] of listOf(saved.path).filter(Array.isArray)) {
    const [from, to] = [graph.number.get(source), graph.number.get(target)];
    if (from === undefined || to === undefined) continue;
    const edge = graph.inputs(to).find((e) => graph.source[e] === from && graph.kinds[graph.kind[e]][0] === kind);
    if (edge !== undefined) state.path.push(edge);
  }
  if (Array.isArray(saved.pins)) {
    state.pins.clear();
    for (const id of saved.pins) addNode(graph, state.pins, id);
  }
  if (Array.isArray(saved.groups)) {
    state.groups = [];
    for (const group of saved.groups) addGroup(graph, state, group);
  }
  for (const [name, map] of [["labels", state.labels], ["notes", state.notes]]) {
    if (saved[name] === null || typeof saved[name] !== "object") continue;
    map.clear();
    for (const [id, text] of Object.entries(saved[name]))
      if (graph.number.has(id) && isText(text)) map.set(graph.number.get(id), text);
  }
  if (["light", "dark"].includes(saved.theme)) state.theme = saved.theme;
  if (given("tray", (value) => typeof value === "boolean")) state.tray = saved.tray;
  return state;
}

function pick(set, rows, name) {
  const row = rows.findIndex((each) => each[0] === name);
  if (row >= 0) set.add(row);
}

export function readHash() {
  try {
    const saved = JSON.parse(decodeURIComponent(location.hash.slice(1)) || "{}");
    return saved && typeof saved === "object" ? saved : {};
  } catch {
    return {};
  }
}

export function writeHash(difference) {
  const text = Object.keys(difference).length ? `#${encodeURIComponent(JSON.stringify(difference))}` : "";
  try {
    history.replaceState(null, "", text || location.pathname + location.search);
  } catch {
    // a frame without an address keeps its state in JSON only
  }
}
