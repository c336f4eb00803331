// Words and numbers as the page writes them: the rules of labels.py, for text that the page makes itself.

const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}\p{Zs}]|[\u{FDD0}-\u{FDEF}]/u;
const SPACES = { "\n": "⏎", "\t": "⇥" };

// White space, controls, bidi marks and lone surrogates made visible, whatever a tokenizer may hold.
export function visible(text, space = "·") {
  let shown = "";
  for (const character of String(text)) {
    const code = character.codePointAt(0);
    if (character === " ") shown += space;
    else if (SPACES[character]) shown += SPACES[character];
    else if (HIDDEN.test(character) || (code & 0xfffe) === 0xfffe)
      shown += code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
    else shown += character;
  }
  return shown;
}

// Whether a number is there: columns hold NaN where the graph has none.
export const known = Number.isFinite;

// Three significant digits and always a sign.
export function signed(value) {
  if (value === 0 || !Number.isFinite(value)) return value === 0 ? "0" : "–";
  const size = Math.abs(value);
  let text;
  if (size >= 1e-4 && size < 1e6) text = size < 999.5 ? size.toPrecision(3) : size.toFixed(0);
  else text = size.toExponential(2).replace("e+", "e");
  return (value < 0 ? "−" : "+") + text;
}

export const plain = (value) => signed(value).replace("+", "");

export function percent(share) {
  if (!Number.isFinite(share)) return "–";
  const value = Math.abs(share) * 100;
  if (value > 0 && value < 0.5) return "<1%";
  return `${share < 0 ? "−" : ""}${Math.round(value)}%`;
}

export const shorten = (text, limit) => (text.length > limit ? `${text.slice(0, limit - 1)}…` : text);

// Not through Intl, whose first use costs 70 ms.
export const many = (count) => String(count).replace(/\B(?=(\d{3})+$)/g, ",");

export const plural = (count, word, words = `${word}s`) => `${many(count)} ${count === 1 ? word : words}`;
