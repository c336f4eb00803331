// The picture: edges in batches, nodes, captions, and what stands out, on two canvases above each other.

import { caption, isError, isTop, strength } from "./data.js";
import { drawEdge, edgePoints } from "./layout.js";

export const GUTTER = 76; // left of the grid, where layers are named
const CLASSES = 6; // of line width: as many as the eye tells apart, and few enough to draw in batches
const THICK_EDGES = 4; // in one path: 200 lines above 1 px took 25 ms as one path, 7 ms apart; thin ones are quickest as one
const MOVING_EDGES = 2500; // drawn while the picture moves
export const DASHED_EDGES = 3000; // dashes of more would cost 1.7 times the drawing, and could not be seen
const MOST_CAPTIONS = 250; // in the window: more are noise, and zooming in brings the others
export const SIDES = ["other", "ov", "accent"]; // in compare: both, only A, only B
export const FONT = 'system-ui, "Segoe UI", Arial, "DejaVu Sans", sans-serif';

export function readColours() {
  const style = getComputedStyle(document.documentElement);
  return new Proxy({}, { get: (seen, name) => (seen[name] ??= style.getPropertyValue(`--${name}`).trim()) });
}

export const edgeColour = (graph, e) => (graph.compare ? SIDES[graph.edgeIn[e]] : graph.kinds[graph.kind[e]][3]);
// Many edges are drawn thinner and paler, so that the strong ones still stand out.
const crowd = (view) => Math.max(0.35, Math.min(1, Math.sqrt(300 / (view.edges.length || 1))));
export function edgeWidth({ looks }, view, strong) {
  const [base, slope, power] = looks.lines.width;
  return base + slope * strong ** power * crowd(view);
}
export function edgeOpacity({ looks }, view, strong) {
  const [base, slope, power] = looks.lines.opacity;
  return (base + slope * strong ** power) * crowd(view);
}
const isMinus = (graph, node) => graph.attribution[node] < 0;
// Nodes and lines grow slower than the distances between them.
const growth = (k) => (k > 1 ? Math.sqrt(k) : k ** 0.75);

export class Painter {
  constructor(graph, base, focus) {
    this.graph = graph;
    this.canvases = { base, focus };
    this.shapes = graph.legend.map(([, path]) => new Path2D(path));
    this.widths = new Map();
    this.colours = readColours();
  }

  resize(width, height) {
    if (this.size?.join() === `${width},${height}`) return; // a new size empties and reallocates
    this.ratio = Math.min(2, window.devicePixelRatio || 1);
    this.size = [width, height];
    for (const canvas of Object.values(this.canvases)) {
      canvas.width = Math.round(width * this.ratio);
      canvas.height = Math.round(height * this.ratio);
    }
  }

  show(view, layout, state) {
    Object.assign(this, { view, layout, state });
    this.all = this.batch(view.edges);
    this.few = view.edges.length > MOVING_EDGES ? this.batch(view.edges.slice(0, MOVING_EDGES)) : this.all;
  }

  // Edges of one colour, sign and width class share their looks; thin ones share one path, thick ones one for each four.
  batch(edges) {
    const { graph, layout, view } = this;
    const buckets = [];
    for (let i = 0; i < edges.length; i += 1) {
      const e = edges[i];
      const level = Math.min(CLASSES - 1, Math.floor(strength(graph, view, e) * CLASSES));
      const minus = graph.weight[e] < 0;
      const key = ((graph.compare ? graph.edgeIn[e] : graph.kind[e]) * 2 + minus) * CLASSES + level;
      const strong = (level + 0.7) / CLASSES;
      const bucket = (buckets[key] ??= { paths: [], left: 0, strong, minus, colour: edgeColour(graph, e) });
      if (!bucket.left) {
        bucket.paths.push(new Path2D());
        bucket.left = edgeWidth(graph, view, strong) * this.ratio > 1 ? THICK_EDGES : Infinity;
      }
      bucket.left -= 1;
      drawEdge(bucket.paths[bucket.paths.length - 1], graph, layout, e);
    }
    return buckets.filter(Boolean).sort((a, b) => a.strong - b.strong);
  }

  begin(name, transform) {
    const context = this.canvases[name].getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvases[name].width, this.canvases[name].height);
    const { k, x, y } = transform;
    context.setTransform(this.ratio * k, 0, 0, this.ratio * k, this.ratio * (x + GUTTER), this.ratio * y);
    this.pen = growth(k) / k; // of one px of a line or node, in the units of the layout
    return context;
  }

  drawBase(transform, moving) {
    const context = this.begin("base", transform);
    this.transform = transform;
    this.bands(context);
    const dashed = this.view.edges.length <= DASHED_EDGES;
    for (const { paths, strong, minus, colour } of moving ? this.few : this.all) {
      this.line(context, colour, strong, minus && dashed);
      for (const path of paths) context.stroke(path);
    }
    this.nodes(context, this.view.nodes, transform);
    if (!moving) this.captions(context, this.view.nodes, transform);
  }

  line(context, colour, strong, dashed, opacity = edgeOpacity(this.graph, this.view, strong)) {
    context.globalAlpha = opacity;
    context.strokeStyle = this.colours[colour];
    context.lineWidth = edgeWidth(this.graph, this.view, strong) * this.pen;
    context.setLineDash(dashed ? this.graph.looks.lines.dash.map((length) => length * this.pen) : []);
  }

  // Pale bands for every second layer, dotted lines between positions.
  bands(context) {
    const { layout, colours, transform, size } = this;
    context.globalAlpha = 1;
    context.fillStyle = colours.band;
    const left = (-transform.x - GUTTER) / transform.k;
    for (const row of layout.rows)
      if (row.layer !== null && row.layer % 2 === 0) context.fillRect(left, row.y, size[0] / transform.k, row.height);
    context.strokeStyle = colours.line;
    context.lineWidth = 0.8 / transform.k;
    context.setLineDash([1 / transform.k, 4 / transform.k]);
    context.beginPath();
    for (const column of layout.columns.slice(1)) {
      if (column.width * transform.k < 8) continue;
      context.moveTo(column.x, 0);
      context.lineTo(column.x, layout.height);
    }
    context.stroke();
    context.setLineDash([]);
  }

  // What stands out: its edges in full strength, its nodes, the selection's ring, the edge under the pointer.
  drawFocus(transform, focus, hovered) {
    const context = this.begin("focus", transform);
    const { graph, layout } = this;
    const edges = focus ? [...focus.edges] : [];
    if (hovered?.edge >= 0) edges.push(hovered.edge);
    for (const e of edges) {
      const strong = Math.max(0.3, strength(graph, this.view, e));
      this.line(context, edgeColour(graph, e), strong, graph.weight[e] < 0, 0.95);
      context.beginPath();
      drawEdge(context, graph, layout, e);
      context.stroke();
    }
    const ends = focus ? [...focus.nodes] : [];
    if (hovered?.edge >= 0) ends.push(graph.source[hovered.edge], graph.target[hovered.edge]);
    this.nodes(context, ends, transform);
    context.globalAlpha = 1;
    const ring = (node, colour, width) => this.ring(context, node, colour, width);
    for (const node of this.state.pins) ring(node, "ink", 1.4);
    if (hovered?.node >= 0) ring(hovered.node, "muted", 2);
    if (this.state.selected >= 0) ring(this.state.selected, "accent", 3);
    if (focus) this.captions(context, ends, transform, this.state.selected);
    this.gutter(context, transform);
  }

  ring(context, node, colour, width) {
    const { layout } = this;
    if (Number.isNaN(layout.x[node])) return;
    context.strokeStyle = this.colours[colour];
    context.lineWidth = width * this.pen;
    context.setLineDash([]);
    context.beginPath();
    context.arc(layout.x[node], layout.y[node], (layout.r[node] + 4.5) * this.pen, 0, 2 * Math.PI);
    context.stroke();
  }

  nodes(context, nodes, transform) {
    const { graph, layout, colours } = this;
    const [width, height] = this.size;
    context.globalAlpha = 1;
    context.setLineDash([]);
    for (const node of nodes) {
      const [x, y] = [layout.x[node] * transform.k + transform.x, layout.y[node] * transform.k + transform.y];
      if (!(x > -20 && x < width && y > -20 && y < height + 20)) continue;
      const scale = (layout.r[node] / 10) * this.pen;
      context.save();
      context.translate(layout.x[node], layout.y[node]);
      context.scale(scale, scale);
      const minus = isMinus(graph, node);
      context.fillStyle = minus ? colours.page : isError(graph, node) ? colours.muted : colours.positive;
      context.strokeStyle = minus ? colours.negative : colours.page;
      context.lineWidth = ((minus ? 2 : 1.2) / scale) * this.pen;
      context.fill(this.shapes[graph.chip[node]]);
      context.stroke(this.shapes[graph.chip[node]]);
      context.restore();
      if (graph.compare && graph.nodeIn[node]) this.sideMark(context, node);
    }
  }

  // Beside a node that only one of two graphs has: which.
  sideMark(context, node) {
    const { layout, graph } = this;
    context.font = `700 ${11 * this.pen}px ${FONT}`;
    context.textAlign = "left";
    context.fillStyle = this.colours[SIDES[graph.nodeIn[node]]];
    context.fillText(" AB"[graph.nodeIn[node]], layout.x[node] + (layout.r[node] + 2) * this.pen, layout.y[node] - 2 * this.pen);
  }

  // Captions that touch no node and no other caption; the selection, labels and large nodes first.
  captions(context, nodes, transform, first = -1) {
    context.setTransform(this.ratio, 0, 0, this.ratio, this.ratio * GUTTER, 0);
    context.font = `11px ${FONT}`;
    context.textAlign = "center";
    const { k, x, y } = transform;
    const inside = (at, most) => at > -60 && at < most + 60;
    const near = nodes.filter((node) => inside(this.layout.x[node] * k + x, this.size[0]) && inside(this.layout.y[node] * k + y, this.size[1]));
    const placed = placeCaptions(this.graph, this.layout, this.state, near, transform, (text) => this.width(context, text), first);
    context.fillStyle = this.colours.page; // a pale ground below the text costs a tenth of an outline
    context.globalAlpha = 0.72;
    for (const { x, y, half } of placed) context.fillRect(x - half + 1, y - 9, 2 * half - 2, 12);
    context.fillStyle = this.colours.ink;
    context.globalAlpha = 1;
    for (const { text, x, y } of placed) context.fillText(text, x, y);
  }

  // Of a caption, in a context that has its font.
  width(context, text) {
    if (!this.widths.has(text)) this.widths.set(text, context.measureText(text).width);
    return this.widths.get(text);
  }

  // The names of layers and sites, which stay at the left.
  gutter(context, transform) {
    const { colours, layout, ratio, size } = this;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.globalAlpha = 1;
    context.fillStyle = colours.page;
    context.fillRect(0, 0, GUTTER, size[1]);
    context.fillStyle = colours.line;
    context.fillRect(GUTTER - 1, 0, 1, size[1]);
    context.textBaseline = "middle";
    const seen = new Set();
    let last = -Infinity;
    for (const row of layout.rows) {
      const y = (row.y + row.height / 2) * transform.k + transform.y;
      if (row.layer !== null && !seen.has(row.layer)) {
        seen.add(row.layer);
        const rows = layout.rows.filter((each) => each.layer === row.layer);
        const bottom = rows[rows.length - 1].y + rows[rows.length - 1].height;
        const middle = ((rows[0].y + bottom) / 2) * transform.k + transform.y;
        if (middle - last >= 12) {
          last = middle;
          context.font = `600 ${rows.some((each) => each.count) ? 13 : 10}px ${FONT}`;
          context.fillStyle = rows.some((each) => each.count) ? colours.ink : colours.muted;
          context.textAlign = "left";
          context.fillText(`L${row.layer}`, 10, middle);
        }
      }
      if (!row.count || row.height * transform.k < 11) continue;
      context.font = `11px ${FONT}`;
      context.fillStyle = colours.muted;
      context.textAlign = "right";
      context.fillText(row.text, GUTTER - 8, y);
    }
    context.textBaseline = "alphabetic";
  }
}

// [{node, text, x, y, half its width}] in px right of the gutter.
export function placeCaptions(graph, layout, state, nodes, transform, widthOf, first = -1) {
  const taken = new Boxes();
  const scale = growth(transform.k);
  const at = (node) => [layout.x[node] * transform.k + transform.x, layout.y[node] * transform.k + transform.y];
  for (const node of nodes) {
    const [x, y] = at(node);
    const r = layout.r[node] * scale;
    taken.add(x - r, y - r, x + r, y + r);
  }
  const must = (node) => node === first || graph.kindOf[node] === "metric" || state.labels.has(node);
  const weight = new Float64Array(graph.n);
  for (const node of nodes) weight[node] = node === first ? Infinity : isTop(graph, node) ? 1e9 : (must(node) ? 1e6 : 0) + Math.abs(graph.attribution[node] || 0);
  const placed = [];
  for (const node of [...nodes].sort((a, b) => weight[b] - weight[a]).slice(0, MOST_CAPTIONS)) {
    const text = caption(graph, state, node);
    if (!text) continue;
    const [x, y] = at(node);
    const half = widthOf(text) / 2 + 2;
    const r = layout.r[node] * scale;
    const within = (middle) => Math.min(Math.max(half, middle), layout.width * transform.k + transform.x - half + 4);
    const [below, above, right, left] = [[x, y + r + 11.5], [x, y - r - 4], [x + r + half + 2, y + 4], [x - r - half - 2, y + 4]];
    const spots = isTop(graph, node) ? [above, below, right, left] : [below, above, right, left];
    const box = ([middle, line]) => [within(middle) - half, line - 9, within(middle) + half, line + 2];
    const found = spots.find((spot) => spot[1] >= 10 && taken.free(...box(spot))) ?? (must(node) && spots.find((spot) => spot[1] >= 10));
    if (!found) continue; // the tooltip and the panel tell it
    taken.add(...box(found));
    placed.push({ node, text, x: within(found[0]), y: found[1], half });
  }
  return placed;
}

// Boxes that are taken, found through a coarse grid.
class Boxes {
  cells = new Map();

  near(box) {
    const keys = [];
    for (let i = Math.floor(box[0] / 48); i <= box[2] / 48; i += 1)
      for (let j = Math.floor(box[1] / 48); j <= box[3] / 48; j += 1) keys.push(i * 65536 + j);
    return keys;
  }

  add(...box) {
    for (const key of this.near(box)) {
      if (!this.cells.has(key)) this.cells.set(key, []);
      this.cells.get(key).push(box);
    }
  }

  free(...box) {
    const apart = (other) => other[0] >= box[2] || box[0] >= other[2] || other[1] >= box[3] || box[1] >= other[3];
    return this.near(box).every((key) => this.cells.get(key)?.every(apart) ?? true);
  }
}

// The shown node under a point of the window's canvas, or -1.
export function nodeAt(view, layout, transform, px, py) {
  const [x, y] = [(px - GUTTER - transform.x) / transform.k, (py - transform.y) / transform.k];
  const scale = growth(transform.k) / transform.k;
  let best = -1;
  let nearest = Infinity;
  for (const node of view.nodes) {
    const distance = Math.hypot(layout.x[node] - x, layout.y[node] - y);
    if (distance < Math.max(9 / transform.k, (layout.r[node] + 4) * scale) && distance < nearest) {
      nearest = distance;
      best = node;
    }
  }
  return best;
}

// The strongest shown edge that passes within a few px of the point, or -1.
export function edgeAt(graph, view, layout, transform, px, py) {
  const [x, y] = [(px - GUTTER - transform.x) / transform.k, (py - transform.y) / transform.k];
  const reach = 5 / transform.k;
  for (const e of view.edges.slice(0, MOVING_EDGES)) {
    const p = edgePoints(graph, layout, e);
    if (y < p[7] - reach || y > p[1] + reach) continue;
    if (x < Math.min(p[0], p[2], p[4], p[6]) - reach || x > Math.max(p[0], p[2], p[4], p[6]) + reach) continue;
    let [fromX, fromY] = [p[0], p[1]];
    for (let i = 1; i <= 20; i += 1) {
      const [u, v] = [i / 20, 1 - i / 20];
      const [a, b, c, d] = [v * v * v, 3 * u * v * v, 3 * u * u * v, u * u * u];
      const toX = a * p[0] + b * p[2] + c * p[4] + d * p[6];
      const toY = a * p[1] + b * p[3] + c * p[5] + d * p[7];
      if (toSegment(x, y, fromX, fromY, toX, toY) < reach) return e;
      [fromX, fromY] = [toX, toY];
    }
  }
  return -1;
}

function toSegment(x, y, ax, ay, bx, by) {
  const [dx, dy] = [bx - ax, by - ay];
  const t = Math.max(0, Math.min(1, ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy || 1)));
  return Math.hypot(x - ax - t * dx, y - ay - t * dy);
}
