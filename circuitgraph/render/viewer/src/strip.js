// The rows of tokens below the grid, and the most likely next tokens above it.

import { caption } from "./data.js";
import { button, byId, element } from "./dom.js";
import { known, percent, plain, signed, visible } from "./text.js";

const LEAST = 12; // px of a token that stands upright

// Width in px that the tokens of each column need; narrower columns cut them or turn them.
export function tokenWidths(graph) {
  const context = document.createElement("canvas").getContext("2d");
  context.font = "12.5px monospace";
  const last = graph.pos.reduce((most, pos) => Math.max(most, pos), Math.max(graph.clean.length, graph.corrupted.length) - 1);
  const width = (text) => Math.min(96, context.measureText(visible(text)).width + graph.looks.token_padding);
  const widths = new Map();
  for (let pos = 0; pos <= last; pos += 1)
    widths.set(pos, Math.max(22, width(graph.clean[pos] ?? ""), width(graph.corrupted[pos] ?? "")));
  return widths;
}

export const differs = (graph, pos) => graph.clean[pos] !== graph.corrupted[pos];

export function buildStrip(graph, positions, upright, onColumn) {
  const two = positions.some((pos) => differs(graph, pos));
  const strip = byId("tokens");
  strip.classList.toggle("upright", upright);
  const cell = (pos) => {
    const [clean, corrupted] = [visible(graph.clean[pos] ?? ""), visible(graph.corrupted[pos] ?? "")];
    const changed = differs(graph, pos);
    const name = `position ${pos}: ${clean}${changed ? `, corrupted ${corrupted}` : ""}`;
    const attributes = {
      type: "button",
      class: changed ? "token changed" : "token",
      "data-pos": pos,
      title: `${name}; click to see this column alone`,
      onclick: () => onColumn(pos),
    };
    return element(
      "button",
      attributes,
      element("span", {}, clean || "∅"),
      two && element("span", {}, changed ? corrupted : ""),
    );
  };
  const side = element("div", { class: "side", "aria-hidden": "true" }, element("span", {}, "clean"), two && element("span", {}, "corrupted"));
  strip.replaceChildren(side, element("div", { class: "cells" }, positions.map(cell)));
  return two ? 2 : 1;
}

// Where columns are narrower than a token, those with nodes keep theirs, then what differs, then what finds room.
export function moveStrip(layout, transform) {
  const cells = [...byId("tokens").querySelectorAll(".token")];
  const crowded = layout.columns.some(({ width }) => width * transform.k < LEAST);
  const rank = (i) => (layout.columns[i].filled ? 0 : cells[i].classList.contains("changed") ? 1 : 2);
  const order = [...cells.keys()];
  if (crowded) order.sort((a, b) => rank(a) - rank(b));
  const taken = [];
  for (const i of order) {
    const left = layout.columns[i].x * transform.k + transform.x;
    const width = Math.max(LEAST, layout.columns[i].width * transform.k - 2);
    const hidden = crowded && taken.some(([from, to]) => left < to && from < left + width);
    if (!hidden) taken.push([left, left + width]);
    Object.assign(cells[i].style, { left: `${left}px`, width: `${width}px`, visibility: hidden ? "hidden" : "" });
  }
}

export function markStrip(graph, state) {
  const at = state.selected >= 0 ? graph.pos[state.selected] : state.column;
  for (const cell of byId("tokens").querySelectorAll(".token")) {
    const here = Number(cell.dataset.pos) === at && (state.selected >= 0 || state.column !== null);
    cell.classList.toggle("current", here);
    cell.setAttribute("aria-pressed", String(state.column === Number(cell.dataset.pos)));
  }
}

const chance = (value) => (value > 0 && value < 0.0005 ? "<0.1%" : value < 0.0995 ? `${(value * 100).toFixed(1)}%` : percent(value));

// The model's answer: a bar for each of the likeliest next tokens, clean above corrupted; below them what the graph explains.
export function buildOutputs(app) {
  const { graph } = app;
  const logits = graph.graph.logits ?? {};
  const rows = ["clean", "corrupted"].filter((side) => Array.isArray(logits[side]) && logits[side].length);
  const metric = graph.graph.metric ?? {};
  const line = (side, list, value) => element("div", { class: "answer" }, element("span", { class: "side" }, side), list, value);
  byId("outputs").replaceChildren(
    ...rows.map((side) => {
      const items = logits[side].filter(Array.isArray).map(([token, probability]) => {
        const bar = element("i");
        bar.style.width = `${Math.max(0, Math.min(1, Number(probability))) * 100}%`;
        return element("li", {}, element("code", {}, visible(token)), element("span", { class: "meter", "aria-hidden": "true" }, bar), chance(Number(probability)));
      });
      const value = known(metric[side]) && element("b", {}, `${graph.metric} ${plain(metric[side])}`);
      return line(side, element("ul", { "aria-label": `likeliest next tokens, ${side} prompt` }, items), value);
    }),
    graph.targets.length ? line("explained", element("span", { class: "pick", role: "group", "aria-label": "What the metric weighs" }, targets(app))) : "",
  );
  byId("outputs").hidden = !rows.length && !graph.targets.length;
}

// A button for each target of the metric: its probability, its weight in the metric, what it adds; it shows one of several alone.
function targets(app) {
  const { graph } = app;
  const found = new Map(graph.graph.logits?.clean?.filter?.(Array.isArray));
  return graph.targets.map((node) => {
    const [probability, weight] = [found.get(graph.more[node]?.token), graph.more[node]?.target_weight];
    const words = [known(probability) && chance(probability), known(weight) && `weight ${plain(weight)}`, known(graph.attribution[node]) && `adds ${signed(graph.attribution[node])}`];
    const title = "show only its ways to the metric; weights below it stay those of all targets together";
    return button([element("code", {}, caption(graph, app.state, node)), words.filter(Boolean).join(", ")], () => app.chooseTarget(node), { "data-target": node, title });
  });
}
