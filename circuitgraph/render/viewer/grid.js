// The drawn grid: bands, edges and nodes as SVG; layer names and tokens as text that stays in sight while scrolling.

const PAD = 12;
const stage = byId("stage");
const { grid } = data;
const canvas = drawing("svg", {
  role: "application",
  "aria-label": "Circuit: arrow keys walk from node to node",
  tabindex: nodeCount ? null : "0",
});
const edgeLayer = drawing("g", { class: "edges" });
const reachLayer = drawing("g", { class: "reach" });
const nodeLayer = drawing("g", { class: "nodes" });
const nodeElements = [];
let edgeElements = new Map();
let zoom = 1;

function buildGrid() {
  canvas.setAttribute("viewBox", `${-PAD} 0 ${grid.width + 2 * PAD} ${Math.max(grid.height, 60)}`);
  canvas.append(...bands(), edgeLayer, reachLayer, nodeLayer);
  for (let node = 0; node < nodeCount; node += 1) nodeLayer.append(nodeElement(node));
  byId("grid").append(canvas);
  if (data.statement) byId("grid").append(element("p", { class: "statement" }, data.statement));
  for (const [layer, text, y, height] of grid.rows) byId("layers").append(rowName(layer, text, y, height));
  for (const column of grid.columns) byId("tokens").append(tokenCell(column));
  byId("tokens").classList.toggle("upright", grid.upright);
  byId("corner").append(element("span", {}, "clean"), element("span", {}, "corrupted"));
  byId("corner").classList.toggle("upright", grid.upright);
  for (const id of ["tokens", "corner"]) {
    byId(id).classList.toggle("one-row", !hasCorrupted());
    byId(id).hidden = !grid.columns.length;
  }
}

const hasCorrupted = () => grid.columns.some((column) => column[3] !== column[4]);

function bands() {
  const shapes = grid.rows
    .filter(([layer]) => layer !== null && layer % 2 === 0)
    .map(([, , y, height]) => drawing("rect", { class: "band", x: -PAD, y, width: grid.width + 2 * PAD, height }));
  const lines = grid.columns
    .slice(1)
    .map(([, x]) => `M${x} 0V${grid.height}`)
    .join("");
  return [...shapes, drawing("path", { class: "guide", d: lines || "M0 0" })];
}

function nodeElement(node) {
  const negative = nodes.attribution[node] < 0;
  const caption = nodes.caption[node];
  const shape = drawing("path", { d: nodes.path[node], class: "shape" });
  const ring = drawing("circle", { r: (nodes.metric[node] ? 1.7 : 1) * nodes.radius[node] + 5, class: "ring" });
  const area = drawing("circle", { r: Math.max(11, nodes.radius[node] + 2), class: "area" });
  const text = caption && drawing("text", { x: caption[1] - nodes.x[node], y: caption[2] - nodes.y[node] }, caption[0]);
  nodeElements[node] = drawing(
    "g",
    {
      class: `node ${negative ? "negative" : "positive"}`,
      transform: `translate(${nodes.x[node]} ${nodes.y[node]})`,
      role: "button",
      tabindex: "-1",
      "aria-label": nodes.title[node],
      "data-node": node,
    },
    area,
    ring,
    shape,
    text,
  );
  return nodeElements[node];
}

function rowName(layer, text, y, height) {
  const first = layer !== null && grid.rows.find((row) => row[0] === layer)[2] === y;
  const name = element(
    "div",
    { class: layer === null ? "row" : `row ${layer % 2 ? "odd" : "even"}` },
    element("b", {}, first ? `L${layer}` : ""),
    element("span", {}, text),
  );
  name.dataset.y = y;
  name.dataset.height = height;
  return name;
}

function tokenCell([pos, x, width, clean, corrupted]) {
  const changed = clean !== corrupted;
  const cell = element(
    "button",
    {
      type: "button",
      class: changed ? "token changed" : "token",
      "data-pos": pos ?? "",
      title: pos === null ? "nodes at no position" : `position ${pos}: ${tokenAt(pos)}`,
    },
    element("span", {}, clean),
    element("span", {}, changed ? corrupted : "="),
  );
  cell.dataset.x = x;
  cell.dataset.width = width;
  return cell;
}

// Draw these edges; they come strongest first and are painted weakest first.
function drawEdges(drawn) {
  edgeElements = new Map();
  const marks = drawn.map((edge) => {
    const mark = drawing("path", {
      d: edges.path[edge],
      class: `edge kind-${colourOf(edge)}${edges.weight[edge] < 0 ? " minus" : ""}`,
      "data-edge": edge,
    });
    mark.style.strokeWidth = edges.width[edge];
    mark.style.strokeOpacity = edges.opacity[edge];
    edgeElements.set(edge, mark);
    return mark;
  });
  edgeLayer.replaceChildren(...marks.reverse());
}

// Fade everything but these nodes and edges; null takes the fading away. Emphasised edges get a wide invisible reach.
function emphasise(keptNodes, keptEdges) {
  canvas.classList.toggle("faded", keptNodes !== null);
  nodeElements.forEach((mark, node) => mark.classList.toggle("kept", keptNodes !== null && keptNodes.has(node)));
  for (const [edge, mark] of edgeElements) {
    mark.classList.toggle("kept", keptEdges !== null && keptEdges.has(edge));
  }
  const near = keptEdges === null ? [] : [...keptEdges].filter((edge) => edgeElements.has(edge));
  reachLayer.replaceChildren(...near.map((edge) => drawing("path", { d: edges.path[edge], "data-edge": edge })));
}

function markNodes(selected, isHidden) {
  const entry = selected < 0 ? startNode() : selected;
  nodeElements.forEach((mark, node) => {
    mark.classList.toggle("selected", node === selected);
    mark.classList.toggle("hidden", isHidden(node));
    mark.setAttribute("aria-pressed", node === selected);
    mark.setAttribute("tabindex", node === entry ? "0" : "-1");
  });
}

// Where walking starts: the metric, else the node with the largest attribution.
function startNode() {
  const metric = nodes.metric.indexOf(true);
  if (metric >= 0) return metric;
  const sizes = nodes.attribution.map((value) => Math.abs(value ?? 0));
  return sizes.indexOf(Math.max(...sizes));
}

function setZoom(value) {
  zoom = Math.min(4, Math.max(0.3, value));
  canvas.style.width = `${zoom * (grid.width + 2 * PAD)}px`;
  canvas.style.height = `${zoom * Math.max(grid.height, 60)}px`;
  for (const name of byId("layers").children) {
    name.style.top = `${zoom * name.dataset.y}px`;
    name.style.height = `${zoom * name.dataset.height}px`;
  }
  byId("tokens").style.fontSize = `${Math.min(13, Math.max(10, 12.5 * zoom))}px`;
  for (const cell of byId("tokens").children) {
    cell.style.left = `${zoom * (Number(cell.dataset.x) + PAD)}px`;
    cell.style.width = `${zoom * cell.dataset.width}px`;
  }
}

// Bring a node into sight, clear of the layer names and the tokens that cover the stage's edges.
function reveal(node) {
  stage.style.scrollPadding = `30px 30px ${byId("tokens").offsetHeight + 30}px ${byId("layers").offsetWidth + 30}px`;
  nodeElements[node].scrollIntoView({ block: "nearest", inline: "nearest" });
}

// As large as the stage is wide, within what stays readable.
function fitZoom() {
  const room = stage.clientWidth - byId("layers").offsetWidth;
  setZoom(Math.min(1.5, Math.max(0.75, room / (grid.width + 2 * PAD))));
}

// Zoom by a factor and keep the point under the pointer (or the middle) where it is.
function zoomAround(factor, clientX, clientY) {
  const box = stage.getBoundingClientRect();
  const x = (clientX ?? box.left + box.width / 2) - box.left - byId("layers").offsetWidth;
  const y = (clientY ?? box.top + box.height / 2) - box.top;
  const before = zoom;
  setZoom(zoom * factor);
  stage.scrollLeft = (stage.scrollLeft + x) * (zoom / before) - x;
  stage.scrollTop = (stage.scrollTop + y) * (zoom / before) - y;
}
