// Above the grid: both prompts with what differs marked, and the numbers that say how far to trust the circuit.

import { byId, element } from "./dom.js";
import { visible } from "./text.js";
import { basis } from "./tables.js";

export function buildHeader(graph) {
  byId("title").textContent = `${graph.metric} ${graph.compare ? "circuits compared" : "circuit"}`;
  byId("model").textContent = [graph.model, graph.compare && `A ${graph.compare.names[0]}, B ${graph.compare.names[1]}`].filter(Boolean).join(" · ");
  const prompts = promptsOf(graph.graph.tokens, "");
  if (graph.compare && !graph.compare.same_tokens) prompts.push(...promptsOf(graph.compare.tokens, ", B"));
  byId("prompts").replaceChildren(...prompts.map(([side, tokens, other]) => promptLine(side, tokens, other)));
  const other = new Map(graph.compare?.facts.map((fact) => [fact[0], fact[1]]));
  const fact = ([name, value, word, explanation]) =>
    element("div", { title: explanation }, element("dt", {}, name), element("dd", {}, graph.compare ? `${value} | ${other.get(name) ?? "–"}` : value, basis(word)));
  byId("facts").replaceChildren(...graph.facts.map(fact));
}

// [which prompt, its tokens, those of the other one] of the prompts that there are.
function promptsOf(tokens, which) {
  const [clean, corrupted] = [tokens?.clean ?? [], tokens?.corrupted ?? []];
  const both = [[`clean${which}`, clean, corrupted.length ? corrupted : clean], [`corrupted${which}`, corrupted, clean]];
  return both.filter(([, own]) => own.length);
}

function promptLine(side, tokens, other) {
  // word-level tokenizers keep no spaces, so there one goes between words
  const spaced = tokens.some((token) => /^\s/.test(token)) ? tokens : tokens.map((token, i) => (i && /^[\p{L}\p{N}]/u.test(token) ? ` ${token}` : token));
  const pieces = spaced.map((token, pos) => element(tokens[pos] === other[pos] ? "span" : "mark", {}, visible(token, " ")));
  return element("div", {}, element("dt", {}, side), element("dd", { tabindex: tokens.length > 40 ? 0 : null }, pieces));
}
