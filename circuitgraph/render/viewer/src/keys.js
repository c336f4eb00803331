// The keyboard: every key does what a click does.

import { byId } from "./dom.js";

export function listenToKeys(app) {
  const { graph } = app;

  const walk = (dx, dy) => {
    const { state, view, layout } = app;
    if (state.selected < 0 || !view.nodeOn[state.selected]) return app.select(graph.metrics[0] ?? view.nodes[0] ?? -1, "keys");
    let best = -1;
    let nearest = Infinity;
    for (const node of view.nodes) {
      const [x, y] = [layout.x[node] - layout.x[state.selected], layout.y[node] - layout.y[state.selected]];
      const [along, beside] = [x * dx + y * dy, Math.abs(x * dy) + Math.abs(y * dx)];
      if (along < 2 || beside > 3 * along) continue;
      const distance = along + 2 * beside;
      if (distance < nearest) [best, nearest] = [node, distance];
    }
    return best >= 0 && app.select(best, "keys");
  };

  // the strongest edge that passes the filters
  const follow = (listOf, end) => {
    const { selected } = app.state;
    if (selected < 0) return walk(0, 0);
    const edge = listOf(selected).find((e) => app.view.filtered.passing[e]);
    return edge !== undefined && app.select(end[edge], "keys");
  };

  const withNode = (action) => () => (app.state.selected >= 0 ? action(app.state.selected) : app.say("select a node first"));

  const actions = {
    ArrowLeft: () => walk(-1, 0),
    ArrowRight: () => walk(1, 0),
    ArrowUp: () => walk(0, -1),
    ArrowDown: () => walk(0, 1),
    "[": () => follow(graph.inputs, graph.source),
    "]": () => follow(graph.outputs, graph.target),
    p: withNode((node) => app.togglePin(node)),
    t: withNode((node) => app.trace(node)),
    g: () => app.groupPins(),
    b: () => byId(app.state.mode === "backbone" ? "mode-strongest" : "mode-backbone").click(),
    n: () => app.nextMatch(),
    "/": () => byId("search").focus(),
    "?": () => byId("help").showModal(),
    "+": () => app.zoomBy(1.3),
    "-": () => app.zoomBy(1 / 1.3),
    0: () => app.fit(),
    Escape: () => {
      byId("export").open = false;
      app.clear();
    },
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const typing = event.target.closest("input, textarea, select");
    if (typing && event.key !== "Escape") return;
    if (event.key.startsWith("Arrow") && event.target.closest("#panel, #tray, pre")) return; // there they scroll
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    if (typing) {
      typing.blur();
      if (typing.id !== "search") return;
    }
    action();
  });
}
