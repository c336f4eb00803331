// The right side: the selected node with what it reads and what reads it, else the circuit as a whole.

import { button, byId, element, number, table, tint } from "./dom.js";
import { isError, kindWords, tally, tokenAt } from "./data.js";
import { ranked } from "./filter.js";
import { known, many, percent, plural, signed, visible } from "./text.js";
import { basis, edgeBadge, edgeTable, headSummary, markLink, nodeLink, sideBadge, symbol } from "./tables.js";

const UNDEFINED = "undefined: the metric does not change";
const SAFE_ID = /^[\w.-]+(\/[\w.-]+)+$/;

// What the panel says, but for which nodes are in the picture.
const contents = ({ state }) => JSON.stringify([state.selected, state.path, state.weights, [...state.pins]]);

// After a filter only the links change: those to nodes that are not in the picture are pale.
export function refreshPanel(app) {
  if (contents(app) !== app.panelShows) return showPanel(app);
  for (const link of byId("panel").querySelectorAll(".link")) markLink(app, link);
}

export function showPanel(app) {
  const node = app.state.selected;
  app.panelShows = contents(app);
  const held = byId("panel").contains(document.activeElement); // what had the focus is gone after this
  byId("panel").replaceChildren(...(node >= 0 ? nodePanel(app, node) : overview(app)).flat().filter(Boolean));
  if (held) (byId("node-name") ?? byId("panel")).focus({ preventScroll: true });
}

function nodePanel(app, node) {
  const { graph, state } = app;
  const inputs = graph.inputs(node);
  const outputs = graph.outputs(node);
  const pinned = state.pins.has(node);
  const attention = inputs.some((e) => graph.headCount[e]);
  return [
    element("h2", { id: "node-name", tabindex: -1 }, symbol(graph, node), element("span", { class: "mono" }, visible(graph.id[node]))),
    element("p", { class: "hint" }, kindWords(graph, node), where(graph, node), sideBadge(graph, graph.compare && graph.nodeIn[node])),
    element(
      "div",
      { class: "actions" },
      button(pinned ? "unpin" : "pin", () => app.togglePin(node), { "aria-pressed": String(pinned), title: "p" }),
      button("trace to metric", () => app.trace(node), { title: "t", disabled: graph.kindOf[node] === "metric" }),
      neuronpedia(graph, node),
    ),
    state.path.length && onPath(graph, state, node) && pathSection(app),
    words(app, node),
    facts(nodeFacts(graph, node)),
    headSummary(graph, inputs),
    edgeTable(app, "Inputs", inputs, graph.source, attention),
    edgeTable(app, "Outputs", outputs, graph.target, false),
  ];
}

const onPath = (graph, state, node) => state.path.some((e) => graph.source[e] === node || graph.target[e] === node);

function where(graph, node) {
  const pos = graph.pos[node];
  const [clean, corrupted] = [tokenAt(graph.clean, pos), tokenAt(graph.corrupted, pos)];
  return [` at position ${pos} `, element("code", {}, clean), clean !== corrupted && [" in the corrupted prompt ", element("code", {}, corrupted)]];
}

// [name, value, basis] of everything known about the node.
export function nodeFacts(graph, node) {
  const found = [];
  const add = (name, value, word) => known(value) && found.push([name, signed(value), word]);
  const metric = graph.kindOf[node] === "metric";
  add(metric ? graph.change : "attribution", graph.attribution[node], metric ? "measured" : "estimated");
  if (!metric && known(graph.attribution[node])) found.push(["of the metric", graph.scale ? percent(graph.attribution[node] / graph.scale) : UNDEFINED, "estimated"]);
  add("effect", graph.effect[node], "measured");
  if (graph.compare) {
    add("attribution in B", graph.otherAttribution[node], "estimated");
    add("effect in B", graph.otherEffect[node], "measured");
    if (graph.nodeIn[node] === 0 && known(graph.attribution[node])) add("B − A", graph.otherAttribution[node] - graph.attribution[node], "estimated");
  }
  add("activation, clean", graph.activation[node], "measured");
  add(`activation, ${graph.graph.provenance?.settings?.baseline ?? "baseline"}`, graph.baseline[node], "measured");
  add("influence", graph.influence[node], "estimated");
  const { stream_input, unexplained, target_weight: weight } = graph.more[node] ?? {};
  if (known(weight)) found.push(["weight in the metric", signed(weight), ""]);
  if (known(stream_input)) found.push(...inflowFacts(stream_input, unexplained));
  const fromErrors = graph.inputs(node).reduce((sum, e) => sum + (isError(graph, graph.source[e]) ? Math.abs(graph.weight[e]) : 0), 0);
  if (fromErrors) found.push(["input from errors", percent(fromErrors / graph.inputTotal[node]), "estimated"]);
  if (graph.topTokens[node].length) found.push(["promotes", element("span", { class: "tokens-list" }, graph.topTokens[node].map((token) => element("code", {}, visible(token)))), ""]);
  return [...found, ...others(graph.more[node], ["label", "note", "stream_input", "unexplained", "target_weight"])];
}

// What the node reads of the streams' difference, and how much of it the graph's edges explain. Parts may exceed the whole.
function inflowFacts(stream_input, unexplained) {
  const part = (value) => `${signed(value)}${Math.abs(value) < 10 * Math.abs(stream_input) ? ` (${percent(value / stream_input)})` : ""}`;
  const facts = [["reads in all", signed(stream_input), "measured", "clean minus baseline in what its linear paths read, before its activation function"]];
  if (!known(unexplained)) return facts;
  const rest = ["by no edge", part(unexplained), "", "from weaker inputs and what is no node; edges that a filter hides count as explained"];
  return [...facts, ["by its edges", part(stream_input - unexplained), "estimated", "the sum of its input edges to the pre-activation, hidden ones too"], rest];
}

// What the graph records beyond what this page knows of, as it stands.
export const others = (values, without = []) =>
  Object.entries(values ?? {})
    .filter(([name]) => !without.includes(name))
    .map(([name, value]) => [visible(name.replace(/_/g, " "), " "), visible(value % 1 ? signed(value) : typeof value === "string" ? value : JSON.stringify(value), " "), ""]);

export const facts = (list) =>
  element("dl", { class: "facts" }, list.map(([name, value, word, title]) => element("div", { title }, element("dt", {}, name), element("dd", {}, value, word && basis(word)))));

function neuronpedia(graph, node) {
  const id = graph.more[node]?.neuronpedia ?? graph.links[graph.siteOf[node]];
  if (graph.kindOf[node] !== "feature" || typeof id !== "string" || !SAFE_ID.test(id)) return null;
  const path = id.split("/").map(encodeURIComponent).join("/");
  const whole = graph.more[node]?.neuronpedia ? path : `${path}/${graph.feature[node]}`;
  return element("a", { class: "chip", href: `https://www.neuronpedia.org/${whole}`, target: "_blank", rel: "noopener noreferrer" }, "Neuronpedia ↗");
}

// The reader's own label and note; they travel with the URL and the saved graph.
function words(app, node) {
  const { state } = app;
  const set = (map) => (event) => {
    if (event.target.value) map.set(node, event.target.value);
    else map.delete(node);
    app.wordsChanged();
  };
  const label = element("input", { id: "label", type: "text", maxlength: 80, placeholder: "your label", autocomplete: "off", oninput: set(state.labels) });
  const note = element("textarea", { id: "note", rows: 2, placeholder: "your note", oninput: set(state.notes) });
  label.value = state.labels.get(node) ?? "";
  note.value = state.notes.get(node) ?? "";
  return element("div", { class: "words" }, element("label", { for: "label" }, "label"), label, element("label", { for: "note" }, "note"), note);
}

function pathSection(app) {
  const { graph, state } = app;
  const steps = state.path.map((e) => element("li", {}, nodeLink(app, graph.source[e]), edgeBadge(graph, e), ` ${signed(graph.weight[e])}`));
  const last = graph.target[state.path[state.path.length - 1]];
  return element(
    "section",
    { class: "path" },
    element("h3", {}, "Strongest path to the metric"),
    element("ol", {}, steps, element("li", {}, nodeLink(app, last))),
    element("p", { class: "hint" }, `${percent(state.pathShare ?? NaN)} of the metric's input runs along it, as the product of shares `, basis("estimated")),
    button("pin the path", () => app.pinPath()),
  );
}

function overview(app) {
  const { graph } = app;
  const strongest = ranked(graph).slice(0, 12);
  const measured = strongest.some((node) => known(graph.effect[node]));
  const row = (node) => [nodeLink(app, node), sideBadge(graph, graph.compare && graph.nodeIn[node]), number(signed(graph.attribution[node]), graph.attribution[node] < 0), number(known(graph.effect[node]) ? signed(graph.effect[node]) : "")];
  const under = (name, word) => element("span", {}, name, element("small", {}, word));
  const columns = ["node", graph.compare && "in", under("attribution", "estimated"), measured && under("effect", "measured")];
  const provenance = graph.graph.provenance && Object.keys(graph.graph.provenance).length;
  return [
    element("h2", {}, graph.compare ? "Two circuits" : "The circuit"),
    graph.statement && element("p", { class: "statement" }, graph.statement),
    element("p", { class: "hint" }, "Click a node for what it reads and what reads it; ", element("kbd", {}, "["), " and ", element("kbd", {}, "]"), " follow the strongest edge down and up. ", element("kbd", {}, "?"), " explains the rest."),
    graph.compare && compareSummary(graph),
    strongest.length > 0 && element("div", { class: "wide" }, table("Largest attributions", columns, strongest.map(row))),
    kindTable(graph),
    graph.graph.evidence && [element("h3", {}, "Evidence as recorded"), facts(others(graph.graph.evidence))],
    list("Not in this page", graph.left_out),
    list("What was left out on the way", graph.graph.reports),
    provenance && element("details", {}, element("summary", {}, "Provenance"), element("pre", { tabindex: 0 }, JSON.stringify(graph.graph.provenance, null, 2).split("\n").map((line) => `${visible(line, " ")}\n`))),
  ];
}

const list = (title, lines) =>
  Array.isArray(lines) && lines.length > 0 && [element("h3", {}, title), element("ul", { class: "reports" }, lines.map((line) => element("li", {}, visible(line, " "))))];

function compareSummary(graph) {
  const [nodes, edges] = [tally(graph.nodeIn, 3), tally(graph.edgeIn, 3)];
  const words = ["in both", "only in A", "only in B"];
  const row = (side) => [[sideBadge(graph, side), ` ${words[side]}`], number(many(nodes[side])), number(many(edges[side]))];
  return table(`A ${graph.compare.names[0]}, B ${graph.compare.names[1]}`, ["", "nodes", "edges"], [0, 1, 2].map(row));
}

function kindTable(graph) {
  if (!graph.m) return null;
  const rows = graph.kinds.map(([, name, meaning, colour], kind) => [
    [tint(colour, element("span", { class: "badge" }, name)), " ", element("small", {}, meaning)],
    number(many(graph.kindCount[kind])),
    number(percent(graph.kindTotal[kind] / graph.total)),
  ]);
  return table(plural(graph.m, "edge"), ["kind", "edges", "of weight"], rows);
}
