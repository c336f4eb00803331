// Where the shown nodes stand: tokens left to right, layers bottom to top, each cell packed to fit the window.

import { isTop } from "./data.js";

const STEPS = [96, 84, 74, 66, 58, 50]; // px between neighbours, from roomy to tight
const TIGHT = [43, 37, 32, 27, 23]; // where tokens that stand upright give no more room either
const ROOMY = 120; // px between neighbours where there is room
const UPRIGHT = 12; // width of a column whose token stands upright; less where there are too many
const ZOOMS = [1, 0.85, 0.7, 0.58, 0.48];

// {x, y, r by node, columns: [{pos, x, width, filled}], rows: [{layer, text, y, height, count}], width, height, upright}
// `heights` are those of the window with lying and with upright tokens, undefined for what must not be.
export function packGrid(graph, view, tokenWidths, width, heights) {
  const cells = new Map();
  for (const node of view.nodes) {
    const pos = graph.pos[node];
    const key = graph.row[node] * 65536 + pos + 1;
    if (!cells.has(key)) cells.set(key, { row: graph.row[node], pos, nodes: [] });
    cells.get(key).nodes.push(node);
  }
  const positions = [...tokenWidths.keys()].sort((a, b) => a - b);
  const filled = new Map();
  const fullest = graph.rows.map(() => 0); // nodes in the fullest cell of each row; all that the search below asks of the cells
  const lines = graph.rows.map(() => 0);
  for (const { row, pos, nodes } of cells.values()) {
    filled.set(pos, Math.max(filled.get(pos) ?? 0, nodes.length));
    fullest[row] = Math.max(fullest[row], nodes.length);
  }
  const most = Math.max(1, ...filled.values());
  const empty = fullest.filter((count) => !count).length;
  const thin = Math.max(5, Math.min(22, (0.25 * (heights[0] ?? heights[1])) / Math.max(1, empty)));

  const narrow = Math.min(UPRIGHT, (0.8 * width) / Math.max(1, positions.length));
  const measure = (step, wrap, upright, zoom) => {
    const line = Math.max(16, Math.min(56, 10 + 0.56 * step));
    const gap = 0.22 * line;
    let [tall, wide] = [0, 0];
    for (let row = 0; row < lines.length; row += 1) {
      lines[row] = Math.ceil(fullest[row] / wrap);
      tall += lines[row] ? lines[row] * line + gap : thin;
    }
    const widths = positions.map((pos) => {
      const token = (upright ? narrow : tokenWidths.get(pos)) / zoom;
      const width = Math.max(token, filled.has(pos) ? Math.min(filled.get(pos), wrap) * step + graph.looks.cell_padding : 0);
      wide += width;
      return width;
    });
    return { step, wrap, upright, line, gap, widths, wide, tall, zoom };
  };
  // the roomiest packing that fits the window, else the roomiest that fits when zoomed out a little
  const search = () => {
    let last;
    for (const zoom of ZOOMS)
      for (const [upright, steps] of [[false, STEPS], [true, STEPS], [false, TIGHT], [true, TIGHT]])
        for (const step of heights[Number(upright)] ? steps : [])
          for (let wrap = most; wrap >= 1; wrap = wrap > 12 ? Math.floor(wrap * 0.85) : wrap - 1) {
            const height = heights[Number(upright)];
            last = measure(step, wrap, upright, zoom);
            if (last.wide * zoom <= width && last.tall * zoom <= height) return last;
            if (last.tall * zoom > height) break; // shorter lines are only taller
          }
    const crowded = heights[0] === undefined || (heights[1] !== undefined && [...tokenWidths.values()].reduce((a, b) => a + b, 0) > width);
    return measure(TIGHT[TIGHT.length - 2], Math.max(3, Math.ceil(Math.sqrt(most) * 1.6)), crowded, 1);
  };
  const fit = search();
  return place(graph, cells, positions, fit, lines, thin, width / fit.zoom, heights[Number(fit.upright)] / fit.zoom);
}

function place(graph, cells, positions, fit, lines, thin, width, height) {
  const spare = Math.max(0, width - fit.wide);
  const filledAt = new Set([...cells.values()].map((cell) => cell.pos));
  let x = 0;
  const columns = positions.map((pos, i) => {
    const own = filledAt.size ? (filledAt.has(pos) ? 0.85 / filledAt.size : 0) + 0.15 / positions.length : 1 / positions.length;
    const column = { pos, x, width: fit.widths[i] + own * spare, filled: filledAt.has(pos) };
    x += column.width;
    return column;
  });
  const total = lines.reduce((a, b) => a + b, 0);
  const stretch = Math.min(34, Math.max(0, height - fit.tall) / Math.max(1, total));
  const line = fit.line + stretch;
  const rows = [];
  let y = Math.max(0, (height - fit.tall - stretch * total) / 2);
  const top = y;
  for (let row = 0; row < graph.rows.length; row += 1) {
    const tall = lines[row] ? lines[row] * line + fit.gap : thin;
    rows.push({ layer: graph.rows[row][0], text: graph.rows[row][1], y, height: tall, count: lines[row] });
    y += tall;
  }
  const layout = {
    x: new Float32Array(graph.n).fill(NaN),
    y: new Float32Array(graph.n).fill(NaN),
    columns,
    rows,
    width: x,
    height: y,
    top,
    upright: fit.upright,
  };
  const at = new Map(columns.map((column) => [column.pos, column]));
  for (const { row, pos, nodes } of cells.values()) placeCell(layout, nodes, at.get(pos), rows[row], fit, line);
  layout.r = radii(graph, fit.step);
  return layout;
}

function placeCell(layout, nodes, column, row, fit, line) {
  const count = Math.ceil(nodes.length / fit.wrap);
  const perLine = Math.ceil(nodes.length / count);
  const top = row.y + (row.height - line * count) / 2;
  const step = Math.min((column.width - 8) / perLine, Math.max(fit.step, ROOMY));
  nodes.forEach((node, place) => {
    const at = Math.floor(place / perLine);
    const inLine = Math.min(perLine, nodes.length - at * perLine);
    const brick = count > 1 && inLine === perLine ? (at % 2 ? 0.25 : -0.25) : 0;
    layout.x[node] = column.x + column.width / 2 + ((place % perLine) - (inLine - 1) / 2 + brick) * step;
    layout.y[node] = top + line * (at + 0.5) - 4;
  });
}

// Area follows |attribution|; the metric and its targets are always large.
function radii(graph, step) {
  const most = Math.min(13, Math.max(8, step / 4.6));
  const least = most * graph.looks.least_radius;
  let largest = 0;
  for (let node = 0; node < graph.n; node += 1)
    if (!isTop(graph, node)) largest = Math.max(largest, Math.abs(graph.attribution[node]) || 0);
  return Float32Array.from({ length: graph.n }, (_, node) =>
    isTop(graph, node)
      ? most
      : least + (most - least) * Math.sqrt((Math.abs(graph.attribution[node]) || 0) / (largest || 1)),
  );
}

// The cubic of an edge, from the top of its source to the bottom of its target, drawn with any pen that has moveTo and
// bezierCurveTo. Q arrives at the left, K at the right, others in between, so that parallel edges stay apart.
export function drawEdge(pen, graph, layout, e) {
  const points = edgePoints(graph, layout, e);
  pen.moveTo(points[0], points[1]);
  pen.bezierCurveTo(points[2], points[3], points[4], points[5], points[6], points[7]);
}

export function edgePoints(graph, layout, e) {
  const [s, t] = [graph.source[e], graph.target[e]];
  const shape = graph.looks.curve;
  const name = graph.kinds[graph.kind[e]][0];
  const side = shape.side * (name === "q" ? -1 : name === "k" ? 1 : 0);
  const x0 = layout.x[s] + shape.start * side * layout.r[s];
  const y0 = layout.y[s] - shape.top * layout.r[s];
  const x1 = layout.x[t] + side * layout.r[t];
  const y1 = layout.y[t] + shape.bottom * layout.r[t];
  const rise = y0 - y1;
  const bend = Math.max(shape.bend, shape.steep * rise);
  const upright = Math.max(0, 1 - Math.abs(x1 - x0) / shape.upright);
  const bow = upright * Math.min(shape.bow, Math.max(0, shape.bow_slope * (rise - shape.bow_from))) * ((s + t) % 2 ? 1 : -1);
  const lean = shape.lean * side + bow;
  return [x0, y0, x0 + lean, y0 - bend, x1 + lean, y1 + bend, x1, y1];
}
