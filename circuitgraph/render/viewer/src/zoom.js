// What d3-zoom asks of d3-transition, d3-interpolate and d3-drag. Nothing is animated here and nothing in the grid can be
// selected as text, so this is all of it, and 30 kB less.

import { selection } from "d3-selection";

selection.prototype.interrupt = function interruptNothing() {
  return this;
};

export function interrupt() {}

export const interpolateZoom = () => undefined;

export function dragDisable() {}

// The click that ends a drag is none.
export function dragEnable(view, moved) {
  const stop = (event) => event.stopImmediatePropagation();
  if (moved) view.addEventListener("click", stop, true);
  setTimeout(() => view.removeEventListener("click", stop, true));
}
