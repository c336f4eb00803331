// The bar of filters: what is drawn, by strength, kind, sign, node and head; search.

import { tally } from "./data.js";
import { button, byId, drawing, element, tint } from "./dom.js";
import { SIDES } from "./paint.js";
import { headName } from "./filter.js";
import { many, plural } from "./text.js";

const STEPS = 1000; // of the logarithmic slider

const toLimit = (value, most) => Math.round(Math.expm1((value / STEPS) * Math.log1p(most)));
const toValue = (limit, most) => (most ? Math.round((STEPS * Math.log1p(limit)) / Math.log1p(most)) : 0);

export function buildFilters(app) {
  const { graph } = app;
  const changed = (change) => (event) => {
    change(app.state, event);
    app.refilter();
  };
  for (const mode of ["backbone", "strongest"]) byId(`mode-${mode}`).addEventListener("click", changed((state) => (state.mode = mode)));
  byId("inputs").addEventListener("change", changed((state, { target }) => (state.inputs = Math.max(1, Math.round(target.value) || 1))));
  byId("strongest").addEventListener("input", (event) => {
    app.state.limit[app.state.mode] = toLimit(event.target.value, graph.m);
    app.refilter(true);
  });
  byId("strongest").addEventListener("change", () => app.refilter());
  byId("count").max = graph.m;
  byId("count").addEventListener("change", changed((state, { target }) => (state.limit[state.mode] = Math.min(graph.m, Math.max(0, Math.round(target.value) || 0)))));
  byId("carried").addEventListener("input", changed((state, { target }) => (state.carried = Number(target.value))));
  byId("sign").addEventListener("change", changed((state, { target }) => (state.sign = target.value)));
  byId("heads").addEventListener("change", changed((state, { target }) => (state.head = target.value)));
  byId("search").addEventListener("input", (event) => app.search(event.target.value));
  byId("search").addEventListener("keydown", (event) => event.key === "Enter" && app.nextMatch());
  buildKinds(app);
  buildChips(app);
  buildHeads(graph);
  if (graph.compare) buildCompare(app);
}

const flip = (set, item) => set.delete(item) || set.add(item);

function buildKinds(app) {
  byId("kinds").replaceChildren(
    ...app.graph.kinds.map(([, name, meaning, colour], kind) =>
      button([tint(app.graph.compare ? "other" : colour, element("i", { class: "swatch" })), name, element("small", {}, many(app.graph.kindCount[kind]))], () => {
        flip(app.state.kindsOff, kind);
        app.refilter();
      }, { "data-kind": kind, title: meaning || name }),
    ),
  );
}

function buildChips(app) {
  const { graph } = app;
  const counts = tally(graph.chip, graph.legend.length);
  const metric = graph.metrics.length ? graph.chip[graph.metrics[0]] : -1;
  byId("chips").replaceChildren(
    ...graph.legend.map(([name, path], chip) => {
      const soft = graph.kindOf[graph.chip.indexOf(chip)] === "error" ? "shape soft" : "shape";
      const shape = drawing("svg", { class: "symbol", viewBox: "-18 -13 36 26", "aria-hidden": "true" }, drawing("path", { d: path, class: soft }));
      const toggle = () => {
        flip(app.state.chipsOff, chip);
        app.refilter();
      };
      return button([shape, name, element("small", {}, many(counts[chip]))], toggle, { "data-chip": chip, disabled: chip === metric });
    }),
  );
}

function buildHeads(graph) {
  const names = new Map();
  for (let e = 0; e < graph.m; e += 1) if (graph.headCount[e]) names.set(headName(graph, e), (names.get(headName(graph, e)) ?? 0) + 1);
  const order = (name) => name.split(".").reduce((sum, part) => sum * 1000 + Number(part), 0);
  const sorted = [...names].sort(([a], [b]) => order(a) - order(b));
  byId("heads").replaceChildren(element("option", { value: "" }, "all heads"), ...sorted.map(([name, count]) => element("option", { value: name }, `L${name.replace(".", " head ")} (${count})`)));
  byId("heads").parentElement.hidden = !sorted.length;
}

function buildCompare(app) {
  const { graph } = app;
  const counts = tally(graph.edgeIn, 3);
  const chips = ["both", "only A", "only B"].map((name, side) =>
    button([tint(SIDES[side], element("i", { class: "swatch" })), name, element("small", {}, many(counts[side]))], () => {
      flip(app.state.sidesOff, side);
      app.refilter();
    }, { "data-side": side }),
  );
  const weights = element(
    "select",
    { id: "weights", onchange: (event) => app.setWeights(event.target.value) },
    [["", "weight: own"], ["A", "weight in A"], ["B", "weight in B"], ["B-A", "difference B − A"]].map(([value, text]) => element("option", { value }, text)),
  );
  byId("compare").hidden = false;
  byId("compare").replaceChildren(element("span", { class: "chips", role: "group", "aria-label": "Where edges are" }, chips), element("label", {}, element("span", { class: "away" }, "Weights"), weights));
}

// The bar shows the state, wherever it came from.
export function showFilters(app) {
  const { graph, state } = app;
  for (const mode of ["backbone", "strongest"]) byId(`mode-${mode}`).setAttribute("aria-pressed", String(state.mode === mode));
  byId("inputs").parentElement.hidden = state.mode !== "backbone";
  byId("inputs").value = state.inputs;
  byId("strongest").value = toValue(state.limit[state.mode], graph.m);
  byId("strongest").setAttribute("aria-valuetext", plural(state.limit[state.mode], "edge"));
  byId("count").value = state.limit[state.mode];
  byId("carried").value = state.carried;
  byId("carried-text").textContent = `${state.carried}%`;
  byId("sign").value = state.sign;
  byId("heads").value = state.head;
  if (byId("search") !== document.activeElement) byId("search").value = state.query;
  if (graph.compare) byId("weights").value = state.weights;
  for (const chip of document.querySelectorAll("[data-target]")) chip.setAttribute("aria-pressed", String(Number(chip.dataset.target) === state.target));
  const press = (selector, set, key) => {
    for (const chip of document.querySelectorAll(selector)) chip.setAttribute("aria-pressed", String(!set.has(Number(chip.dataset[key]))));
  };
  press("#kinds .chip", state.kindsOff, "kind");
  press("#chips .chip", state.chipsOff, "chip");
  press("#compare .chip", state.sidesOff, "side");
}
