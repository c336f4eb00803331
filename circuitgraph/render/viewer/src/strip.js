// The rows of tokens below the grid, and the most likely next tokens above it.

import { byId, element } from "./dom.js";
import { known, percent, plain, visible } from "./text.js";

const BIAS = -1;

// Width in px that the tokens of each column need; narrower columns cut them or turn them.
export function tokenWidths(graph) {
  const context = document.createElement("canvas").getContext("2d");
  context.font = "12.5px monospace";
  let last = Math.max(graph.clean.length, graph.corrupted.length) - 1;
  let hasBias = false;
  for (let node = 0; node < graph.n; node += 1) {
    if (Number.isNaN(graph.pos[node])) hasBias = true;
    else last = Math.max(last, graph.pos[node]);
  }
  const width = (text) => Math.min(96, context.measureText(visible(text)).width + 9);
  const widths = new Map(hasBias ? [[BIAS, 40]] : []);
  for (let pos = 0; pos <= last; pos += 1)
    widths.set(pos, Math.max(22, width(graph.clean[pos] ?? ""), width(graph.corrupted[pos] ?? "")));
  return widths;
}

export const differs = (graph, pos) => graph.clean[pos] !== graph.corrupted[pos];

export function buildStrip(graph, layout, onColumn) {
  const two = layout.columns.some(({ pos }) => pos >= 0 && differs(graph, pos));
  const strip = byId("tokens");
  strip.classList.toggle("upright", layout.upright);
  const cell = ({ pos }) => {
    const [clean, corrupted] = [visible(graph.clean[pos] ?? ""), visible(graph.corrupted[pos] ?? "")];
    const changed = pos >= 0 && differs(graph, pos);
    const name = pos < 0 ? "no position" : `position ${pos}: ${clean}${changed ? `, corrupted ${corrupted}` : ""}`;
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
      element("span", {}, pos < 0 ? "bias" : clean || "∅"),
      two && element("span", {}, changed ? corrupted : ""),
    );
  };
  const side = element("div", { class: "side", "aria-hidden": "true" }, element("span", {}, "clean"), two && element("span", {}, "corrupted"));
  strip.replaceChildren(side, element("div", { class: "cells" }, layout.columns.map(cell)));
}

export function moveStrip(layout, transform) {
  const cells = byId("tokens").querySelectorAll(".token");
  layout.columns.forEach(({ x, width }, i) => {
    cells[i].style.left = `${x * transform.k + transform.x}px`;
    cells[i].style.width = `${Math.max(12, width * transform.k - 2)}px`;
  });
}

export function markStrip(graph, state) {
  const at = state.selected >= 0 ? (Number.isNaN(graph.pos[state.selected]) ? BIAS : graph.pos[state.selected]) : state.column;
  for (const cell of byId("tokens").querySelectorAll(".token")) {
    const here = Number(cell.dataset.pos) === at && (state.selected >= 0 || state.column !== null);
    cell.classList.toggle("current", here);
    cell.setAttribute("aria-pressed", String(state.column === Number(cell.dataset.pos)));
  }
}

// The model's answer: a bar for each of the likeliest next tokens, clean above corrupted.
export function buildOutputs(graph) {
  const logits = graph.graph.logits ?? {};
  const rows = ["clean", "corrupted"].filter((side) => Array.isArray(logits[side]) && logits[side].length);
  const metric = graph.graph.metric ?? {};
  byId("outputs").replaceChildren(
    ...rows.map((side) => {
      const items = logits[side].filter(Array.isArray).map(([token, probability]) => {
        const bar = element("i");
        bar.style.width = `${Math.max(0, Math.min(1, Number(probability))) * 100}%`;
        const chance = Number(probability) < 0.0995 ? `${(Number(probability) * 100).toFixed(1)}%` : percent(Number(probability));
        return element("li", {}, element("code", {}, visible(token)), element("span", { class: "meter", "aria-hidden": "true" }, bar), chance);
      });
      const value = known(metric[side]) && element("b", {}, `${graph.metric} ${plain(metric[side])}`);
      return element("div", { class: "answer" }, element("span", { class: "side" }, side), element("ul", { "aria-label": `likeliest next tokens, ${side} prompt` }, items), value);
    }),
  );
  byId("outputs").hidden = !rows.length;
}

