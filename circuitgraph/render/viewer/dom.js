// Small makers of elements and of texts. All text enters the page through textContent: no string is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(
    ...children.flat().filter((child) => child !== null && child !== undefined && child !== false && child !== ""),
  );
  return node;
}

// element("td", {class: "number"}, "0.3"): an HTML element; on* attributes are listeners, strings become text.
function element(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function drawing(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

// Three significant digits, always signed, with a real minus: the same text as labels.signed.
function signed(value) {
  if (value === null || value === undefined) return "";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const sign = value < 0 ? "−" : "+";
  if (size < 1e-4 || size >= 1e6) return sign + size.toExponential(2).replace("e+", "e");
  return sign + (size < 999.5 ? size.toPrecision(3) : size.toFixed(0));
}

const plain = (value) => signed(value).replace("+", "");

function percent(share) {
  return share > 0 && share < 0.005 ? "<1%" : `${Math.round(100 * share)}%`;
}

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
