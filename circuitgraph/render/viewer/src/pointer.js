// Clicks and hovering: what is under the pointer, and what the tooltip says of it.

import { caption, headsOf, kindWords, share } from "./data.js";
import { byId, element } from "./dom.js";
import { edgeAt, GUTTER, nodeAt } from "./paint.js";
import { facts, nodeFacts, others } from "./panel.js";
import { edgeBadge, headWords } from "./tables.js";
import { known, percent, signed, visible } from "./text.js";

export function listenToPointer(app) {
  const { graph, stage } = app;
  const tooltip = byId("tooltip");

  const pointed = (event) => {
    const box = stage.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    if (x < GUTTER) return { node: -1, edge: -1 };
    const node = nodeAt(app.view, app.layout, app.transform, x, y);
    return { node, edge: node >= 0 ? -1 : edgeAt(graph, app.view, app.layout, app.transform, x, y) };
  };

  stage.addEventListener("click", (event) => {
    const { node, edge } = pointed(event);
    if (node >= 0) app.select(node);
    else if (edge < 0) {
      if (app.focus) app.select(-1);
    } else app.select(app.state.selected === graph.target[edge] ? graph.source[edge] : graph.target[edge]); // an edge leads to its other end
  });

  stage.addEventListener("pointermove", (event) => {
    if (event.buttons) return;
    app.hovered = pointed(event);
    const { node, edge } = app.hovered;
    const nothing = node < 0 && edge < 0;
    stage.classList.toggle("pointing", !nothing);
    tooltip.hidden = nothing;
    if (!nothing) {
      tooltip.replaceChildren(...(node >= 0 ? nodeTip(app, node) : edgeTip(graph, edge)));
      const left = event.clientX + 16 + tooltip.offsetWidth > innerWidth ? event.clientX - tooltip.offsetWidth - 12 : event.clientX + 16;
      tooltip.style.left = `${Math.max(4, left)}px`;
      tooltip.style.top = `${Math.max(4, Math.min(event.clientY + 16, innerHeight - tooltip.offsetHeight - 8))}px`;
    }
    app.painter.drawFocus(app.transform, app.focus, app.hovered);
  });

  stage.addEventListener("pointerleave", () => {
    app.hovered = null;
    tooltip.hidden = true;
    app.painter.drawFocus(app.transform, app.focus, null);
  });
}

function nodeTip({ graph, state }, node) {
  return [
    element("b", { class: "mono" }, visible(graph.id[node])),
    element("p", {}, kindWords(graph, node), " · ", element("b", {}, caption(graph, state, node))),
    facts(nodeFacts(graph, node).slice(0, 6)),
  ];
}

function edgeTip(graph, e) {
  const lines = [["weight", signed(graph.weight[e]), "estimated"], ["of the target’s input", percent(share(graph, e)), ""]];
  if (known(graph.local[e])) lines.push(["to the pre-activation", signed(graph.local[e]), ""]);
  if (graph.compare) lines.push(["in A", signed(graph.weightA[e]), ""], ["in B", signed(graph.weightB[e]), ""]);
  if (graph.headCount[e]) lines.push(["mostly", headWords(headsOf(graph, e)), ""]);
  return [
    element("p", {}, edgeBadge(graph, e), ` ${graph.kinds[graph.kind[e]][2]}`),
    element("p", { class: "mono" }, `${visible(graph.id[graph.source[e]])} → ${visible(graph.id[graph.target[e]])}`),
    facts([...lines, ...others(graph.edgeMore[e])]),
  ];
}
