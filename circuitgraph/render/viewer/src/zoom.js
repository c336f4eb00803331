// d3-zoom asks d3-transition and d3-interpolate for what animations need. Nothing is animated here, which saves 29 kB.

import { selection } from "d3-selection";

selection.prototype.interrupt = function interruptNothing() {
  return this;
};

export function interrupt() {}

export const interpolateZoom = () => undefined;
