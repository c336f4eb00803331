// The graph of this page and the questions the view asks it. Nodes and edges are numbers, their attributes columns.

const data = JSON.parse(byId("data").textContent);
const { nodes, edges } = data;
const nodeCount = nodes.name.length;
const edgeCount = edges.weight.length;

const inputs = Array.from({ length: nodeCount }, () => []);
const outputs = Array.from({ length: nodeCount }, () => []);
const inputTotal = new Array(nodeCount).fill(0);
let weightTotal = 0;
for (let edge = 0; edge < edgeCount; edge += 1) {
  // Edges come strongest first, so these lists are strongest first too.
  inputs[edges.target[edge]].push(edge);
  outputs[edges.source[edge]].push(edge);
  inputTotal[edges.target[edge]] += Math.abs(edges.weight[edge]);
  weightTotal += Math.abs(edges.weight[edge]);
}

const columnOf = new Map(data.grid.columns.map((column) => [column[0], column]));

// Clean token of a position; the corrupted one is appended where it differs.
function tokenAt(pos) {
  const column = columnOf.get(pos);
  if (!column || pos === null) return "";
  return column[3] === column[4] ? column[3] : `${column[3]} | ${column[4]}`;
}

// Share of the target's total absolute input that an edge carries; over all edges of the graph, drawn or not.
function shareOf(edge) {
  const total = inputTotal[edges.target[edge]];
  return total ? Math.abs(edges.weight[edge]) / total : 0;
}

const colourOf = (edge) => data.kinds[edges.kind[edge]][3];

const haystacks = nodes.name.map((name, node) => {
  const words = [name, nodes.kind[node], nodes.label[node], tokenAt(nodes.pos[node]), ...nodes.top_tokens[node]];
  if (nodes.layer[node] !== null) words.push(`L${nodes.layer[node]}`);
  return words.filter(Boolean).join(" ").toLowerCase();
});

// Nodes that match every term: a word in the name, kind, label or tokens; pos:9 for a position; L2 for a layer.
function findNodes(query) {
  const terms = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!terms.length) return [];
  const matches = (node, term) => {
    const place = /^(pos:|l)(\d+)$/.exec(term);
    if (place) return Number(place[2]) === (place[1] === "l" ? nodes.layer[node] : nodes.pos[node]);
    return haystacks[node].includes(term);
  };
  return [...nodes.name.keys()].filter((node) => terms.every((term) => matches(node, term)));
}

// The node nearest to `from` in a direction: distance along it counts once, distance across it three times.
function nearestNode(from, across, up, allowed) {
  let best = -1;
  let least = Infinity;
  for (let node = 0; node < nodeCount; node += 1) {
    if (node === from || !allowed(node)) continue;
    const x = nodes.x[node] - nodes.x[from];
    const y = nodes.y[from] - nodes.y[node];
    const along = x * across + y * up;
    const cost = along + 3 * Math.abs(x * up - y * across);
    if (along > 1 && cost < least) [best, least] = [node, cost];
  }
  return best;
}
