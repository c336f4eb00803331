// The page's state, its view, and everything that changes when the reader acts.

import { caption, kindWords, rank, share } from "./data.js";
import { listenToControls, systemTheme } from "./controls.js";
import { byId } from "./dom.js";
import { computeView, findNodes, strongestPath } from "./filter.js";
import { buildFilters, showFilters } from "./filters.js";
import { buildHeader } from "./header.js";
import { packGrid } from "./layout.js";
import { DASHED_EDGES, GUTTER, Painter, readColours } from "./paint.js";
import { refreshPanel, showPanel } from "./panel.js";
import { freshState, loadState, readHash, saveState, stateDifference, writeHash } from "./state.js";
import { buildOutputs, buildStrip, markStrip, moveStrip, tokenWidths } from "./strip.js";
import { looseNodes, showTray } from "./tray.js";
import { many, percent, plural, visible } from "./text.js";

const TURNED = 36; // px that a row of tokens is higher when they stand upright
const MOST_IN_HASH = 8000; // characters; longer addresses do not survive being sent

export class App {
  constructor(graph) {
    this.graph = graph;
    this.defaults = saveState(graph, freshState(graph));
    this.state = loadState(graph, readHash());
    this.stage = byId("stage");
    this.painter = new Painter(graph, byId("base"), byId("focus"));
    this.hovered = null;
    this.widths = tokenWidths(graph);
    this.positions = [...this.widths.keys()].sort((a, b) => a - b);
  }

  get transform() {
    return this.zoom.transform;
  }

  start() {
    this.applyTheme();
    buildHeader(this.graph);
    buildOutputs(this);
    buildFilters(this);
    this.turnStrip(false); // before the room for the grid is measured
    listenToControls(this);
    if (this.state.weights) this.setWeights(this.state.weights);
    if (this.state.query) this.state.matches = findNodes(this.graph, this.state, this.state.query);
    this.refilter();
    if (this.state.path.length) this.state.pathShare = this.state.path.reduce((all, e) => all * share(this.graph, e), 1);
  }

  // Filters changed: choose, pack, draw. While a slider moves only the picture and the counts follow.
  refilter(moving = false) {
    this.view = computeView(this.graph, this.state, this.view);
    this.pack();
    showFilters(this);
    this.refocus(moving);
    if (moving) return;
    refreshPanel(this);
    showTray(this);
    this.settle();
    this.remember();
  }

  // The window or the tray changed the room there is. Tokens turn with the width only: turned, they change the height.
  settle() {
    const [width, height] = this.painter.size ?? [];
    if (!this.layout || (width === this.stage.clientWidth && height === this.stage.clientHeight)) return;
    this.pack(width === this.stage.clientWidth);
    this.refocus();
  }

  pack(sameTurn = false) {
    const [width, height] = [this.stage.clientWidth || 640, this.stage.clientHeight || 480]; // a frame may have no size yet
    const turned = this.stripRows * TURNED * (this.upright ? 1 : -1); // what the strip gives or takes when it turns
    const heights = [0, 1].map((upright) => (upright === Number(this.upright) ? height - 8 : sameTurn ? undefined : height + turned - 8));
    this.layout = packGrid(this.graph, this.view, this.widths, width - GUTTER - 6, heights);
    this.painter.resize(width, height);
    this.painter.show(this.view, this.layout, this.state);
    if (this.upright !== this.layout.upright) this.turnStrip(this.layout.upright);
    this.fit();
  }

  turnStrip(upright) {
    this.upright = upright;
    this.stripRows = buildStrip(this.graph, this.positions, upright, (pos) => this.isolate(pos));
  }

  // The whole grid where that stays readable, else its upper right corner: the metric.
  fit() {
    const [width, height] = [this.painter.size[0] - GUTTER - 6, this.painter.size[1] - 8];
    const whole = Math.min(1, width / this.layout.width, height / this.layout.height);
    const k = Math.max(0.42, whole);
    const x = Math.min(0, width - this.layout.width * k);
    const y = Math.min(0, Math.max(height - this.layout.height * k, 4 - this.layout.top * k));
    this.zoom.set(k, x, whole < k ? 0 : y);
  }

  draw(moving = false) {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => {
      this.painter.drawBase(this.transform, moving);
      this.painter.drawFocus(this.transform, this.focus, this.hovered);
    });
    moveStrip(this.layout, this.transform);
  }

  // What stands out: around the selected node, else the traced path, else the matches, else one column.
  refocus(moving = false) {
    this.focus = this.focusSet();
    byId("base").classList.toggle("dimmed", this.focus !== null);
    this.draw(moving);
    markStrip(this.graph, this.state);
    this.say("");
  }

  focusSet() {
    const { graph, state, view } = this;
    const ends = (edges) => edges.flatMap((e) => [graph.source[e], graph.target[e]]);
    const among = (nodes) => {
      const kept = new Set(nodes.filter((node) => view.nodeOn[node]));
      return { nodes: kept, edges: [...view.edges].filter((e) => kept.has(graph.source[e]) && kept.has(graph.target[e])) };
    };
    const onPath = state.path.length > 0 && ends(state.path).includes(state.selected);
    if (onPath || (state.selected < 0 && state.path.length)) return { nodes: new Set(ends(state.path)), edges: [...state.path].reverse() };
    if (state.selected >= 0) {
      const edges = [...view.edges].filter((e) => graph.source[e] === state.selected || graph.target[e] === state.selected).reverse();
      return { nodes: new Set([...ends(edges), state.selected]), edges };
    }
    if (state.query) return among(state.matches);
    if (state.column !== null) return among(view.nodes.filter((node) => graph.pos[node] === state.column));
    return null;
  }

  statusText() {
    const { graph, state, view } = this;
    if (!graph.n) return graph.statement;
    const parts = [`${many(view.nodes.length)} of ${plural(graph.n, "node")}`, `${many(view.edges.length)} of ${plural(graph.m, "edge")}`];
    if (graph.total) parts.push(`${percent(view.weight / graph.total)} of the edge weight`);
    if (state.target >= 0) parts.unshift(`only ways to ${caption(graph, state, state.target)}`);
    if (view.hidden.length) parts.push(`hidden: ${view.hidden.map(([count, why]) => `${many(count)} ${why}`).join(", ")}`);
    if (view.edges.length > DASHED_EDGES) parts.push("too many edges for dashes: choose a sign to see it");
    if (graph.left_out.length) parts.push("more was left out of this page, see the panel");
    if (state.selected >= 0) {
      const shown = (list) => list.reduce((sum, e) => sum + view.edgeOn[e], 0);
      const [inputs, outputs] = [graph.inputs(state.selected), graph.outputs(state.selected)];
      parts.unshift(`${visible(graph.id[state.selected])}, ${kindWords(graph, state.selected)}: ${shown(inputs)} of ${plural(inputs.length, "input")}, ${shown(outputs)} of ${plural(outputs.length, "output")} drawn`);
    }
    if (state.query) {
      const here = state.matches.filter((node) => view.nodeOn[node]).length;
      parts.push(`${plural(state.matches.length, "match", "matches")} for “${state.query}”, ${here} in the picture`);
    }
    return parts.join(" · ");
  }

  say(message) {
    const words = [message, this.statusText()].filter(Boolean).join(" · ");
    byId("status").textContent = byId("status").title = words;
  }

  // `from` says where the reader is, so that the focus stays there.
  select(node, from = "grid") {
    const { state } = this;
    state.selected = node;
    if (node >= 0) state.column = null;
    if (node < 0 || this.view.nodeOn[node]) {
      this.refocus();
      showPanel(this);
      this.remember();
    } else {
      state.chipsOff.delete(this.graph.chip[node]);
      state.opened.add(node);
      this.refilter();
    }
    if (node < 0) return;
    this.reveal(node);
    if (from === "panel") byId("node-name").focus({ preventScroll: true });
    else if (from === "keys") this.stage.focus({ preventScroll: true });
  }

  // Moves the picture when the node is outside the window.
  reveal(node) {
    const [x, y] = [this.layout.x[node] * this.transform.k + this.transform.x, this.layout.y[node] * this.transform.k + this.transform.y];
    const [width, height] = [this.stage.clientWidth - GUTTER, this.stage.clientHeight];
    const off = (at, most) => (at < 20 ? 20 - at : at > most - 20 ? most - 20 - at : 0);
    const [dx, dy] = [off(x, width), off(y, height)];
    if (dx || dy) this.zoom.move(dx, dy);
  }

  clear() {
    Object.assign(this.state, { query: "", matches: [], column: null, selected: -1, path: [], pathShare: undefined });
    this.state.opened.clear();
    byId("search").value = "";
    this.refilter();
  }

  search(query) {
    this.state.query = query.trim();
    this.state.matches = findNodes(this.graph, this.state, this.state.query);
    this.state.selected = -1;
    this.refocus();
    showPanel(this);
    this.remember();
  }

  nextMatch() {
    const { matches, selected } = this.state;
    if (matches.length) this.select(matches[(matches.indexOf(selected) + 1) % matches.length], "keys");
  }

  // Of several targets one alone; the only one is just selected.
  chooseTarget(node) {
    const { state } = this;
    if (this.graph.targets.length < 2) return this.select(node);
    Object.assign(state, { target: state.target === node ? -1 : node, selected: -1, path: [] });
    this.refilter();
    showPanel(this);
  }

  isolate(pos) {
    this.state.selected = -1;
    this.state.column = this.state.column === pos ? null : pos;
    this.refocus();
    showPanel(this);
    this.remember();
  }

  trace(node) {
    const { path, product } = strongestPath(this.graph, node, this.view.filtered.passing);
    if (!path.length) return this.say("no path from here to the metric");
    Object.assign(this.state, { path, pathShare: product, selected: node });
    this.refilter();
  }

  togglePin(node) {
    const { state } = this;
    if (!state.pins.delete(node)) {
      state.pins.add(node);
      state.tray ||= state.pins.size === 1;
    } else this.ungroup(new Set([node]));
    this.refilter();
  }

  ungroup(nodes) {
    for (const group of this.state.groups) for (const node of nodes) group.nodes.delete(node);
    this.state.groups = this.state.groups.filter((group) => group.nodes.size);
  }

  pinPath() {
    for (const e of this.state.path) this.state.pins.add(this.graph.source[e]).add(this.graph.target[e]);
    this.state.tray = true;
    this.refilter();
  }

  pinShown() {
    for (const node of this.view.nodes) if (this.graph.kindOf[node] !== "metric") this.state.pins.add(node);
    this.refilter();
  }

  groupPins() {
    const nodes = looseNodes(this.state);
    if (nodes.length < 2) return this.say("pin two nodes or more to group them");
    this.state.tray = true;
    this.makeGroup(`group ${this.state.groups.length + 1}`, nodes);
    const names = document.querySelectorAll(".group-name");
    names[names.length - 1]?.select();
  }

  makeGroup(name, nodes) {
    this.ungroup(nodes);
    for (const node of nodes) this.state.pins.add(node);
    this.state.groups.push({ name, nodes: new Set(nodes) });
    this.refilter();
  }

  renameGroup(group, name) {
    group.name = name.trim() || group.name;
    showTray(this);
    this.remember();
  }

  dissolveGroup(group) {
    this.state.groups = this.state.groups.filter((each) => each !== group);
    this.refilter();
  }

  clearTray() {
    this.state.pins.clear();
    this.state.groups = [];
    this.refilter();
  }

  wordsChanged() {
    this.draw();
    showTray(this);
    this.remember();
  }

  // In a comparison: which weight ranks and draws the edges.
  setWeights(which) {
    const { graph } = this;
    this.state.weights = which;
    const difference = () => graph.weightB.map((weight, e) => weight - graph.weightA[e]);
    graph.weight = which === "A" ? graph.weightA : which === "B" ? graph.weightB : which === "B-A" ? difference() : graph.own;
    rank(graph);
    if (this.view) this.refilter();
  }

  applyTheme() {
    document.documentElement.dataset.theme = this.state.theme || systemTheme();
    this.painter.colours = readColours();
  }

  toggleTheme() {
    this.state.theme = (this.state.theme || systemTheme()) === "dark" ? "light" : "dark";
    this.applyTheme();
    this.draw();
    this.remember();
  }

  load(saved) {
    this.state = loadState(this.graph, saved);
    this.panelShows = "";
    this.applyTheme();
    if (this.graph.compare) this.setWeights(this.state.weights);
    this.state.matches = findNodes(this.graph, this.state, this.state.query);
    this.refilter();
  }

  remember() {
    clearTimeout(this.remembering);
    this.remembering = setTimeout(() => {
      const difference = stateDifference(saveState(this.graph, this.state), this.defaults);
      if (JSON.stringify(difference).length <= MOST_IN_HASH) writeHash(difference);
    }, 300); // each new address costs the browser 20 ms
  }

  zoomBy(factor) {
    this.zoom.scale(factor);
  }
}
