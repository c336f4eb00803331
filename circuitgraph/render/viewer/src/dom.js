// Elements made by hand: text is always text, never markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false && child !== ""));
  return element;
}

export const element = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

export const drawing = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

// Rows are lists of cells; the first cell of each is its header. A number's cell comes from `number`.
export function table(title, columns, rows) {
  const shown = columns.map((name) => name !== null && name !== undefined && name !== false);
  const cells = (row) => row.filter((_, i) => shown[i]).map((cell, i) => (cell instanceof HTMLTableCellElement ? cell : element(i ? "td" : "th", i ? {} : { scope: "row" }, cell)));
  return element(
    "table",
    {},
    element("caption", {}, title),
    element("thead", {}, element("tr", {}, columns.filter((_, i) => shown[i]).map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, rows.map((row) => element("tr", {}, cells(row)))),
  );
}

export const number = (text, minus) => element("td", { class: minus ? "number minus" : "number" }, text);

// Gives an element the colour of that name, which its style uses as --kind.
export function tint(name, element) {
  element.style.setProperty("--kind", `var(--${name})`);
  return element;
}

export const button = (text, onclick, attributes = {}) =>
  element("button", { type: "button", class: "chip", onclick, ...attributes }, text);

// Hands a file to the reader.
export function download(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { class: "away" }); // pages opened from disk may not have the clipboard
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
