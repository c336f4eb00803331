// Bundles src/ into bundle/: one script, one style sheet, the licences of what is inside, and the hash of the sources.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const here = (name) => new URL(name, import.meta.url).pathname;
const out = process.argv[2] ?? here("bundle");
const common = { bundle: true, minify: true, legalComments: "none", charset: "utf8", target: "es2022", logLevel: "warning" };

// Of d3 the page keeps what it calls: 9 kB less, and none of what could write markup.
const KEPT = ["filter", "selection", "call", "node", "each", "style", "property", "datum", "on"];
const without = (text, pattern) => text.replace(pattern, (found, name) => (KEPT.includes(name) ? found : ""));
const TRIMS = {
  "d3-selection": [/^  (\[?[\w.]+\]?): selection_\w+,?\n/gm, /^(?:EnterNode|ClassList|Local)\.prototype = .*?^\};\n/gms],
  "d3-zoom": [
    /^  zoom\.(?:wheelDelta|filter|touchable|extent|translateExtent|constrain|duration|interpolate|clickDistance|tapDistance|translateTo) = .*?^  \};\n/gms,
    /^  (?:applyX|applyY|rescaleX|rescaleY): .*?^  \},\n/gms,
  ],
};
const trimmed = {
  name: "trimmed-d3",
  setup: ({ onLoad }) =>
    onLoad({ filter: /d3-(selection|zoom)\.mjs$/ }, ({ path }) => {
      const trims = TRIMS[path.match(/(d3-\w+)\.mjs$/)[1]];
      return { contents: trims.reduce(without, readFileSync(path, "utf8")) };
    }),
};

// Long names that no JSON, no address and no document knows; 1.5 kB less.
const OWN =
  "applyTheme chipsOff chooseTarget clearTray dissolveGroup edgeIn edgeMore edgeOn filtered groupPins headCount headStart headValues hovered inputTotal" +
  " kindCount kindOf kindTotal kindsOff makeGroup nextMatch nodeIn nodeOn otherAttribution otherEffect painter panelShows passing pathShare pinPath" +
  " pinShown placeOf refilter refocus remember remembering renameGroup setWeights sidesOff siteOf statusText togglePin toggleTheme topTokens" +
  " turnStrip ungroup weightA weightB wordsChanged touch0 touch1";

const { metafile } = await build({
  ...common,
  entryPoints: [here("src/main.js")],
  outfile: `${out}/viewer.js`,
  format: "iife",
  metafile: true,
  mangleProps: new RegExp(`^(${OWN.replaceAll(" ", "|")})$`),
  plugins: [trimmed],
  alias: Object.fromEntries(["d3-transition", "d3-interpolate", "d3-drag"].map((name) => [name, here("src/zoom.js")])),
});
await build({ ...common, entryPoints: [here("src/viewer.css")], outfile: `${out}/viewer.css` });

const script = readFileSync(`${out}/viewer.js`, "utf8");
for (const unsafe of ["</script", "<!--", "innerHTML", "fetch(", "eval("])
  if (script.includes(unsafe)) throw new Error(`the bundle holds ${unsafe}`);

const packages = [...new Set(Object.keys(metafile.inputs).map((name) => name.match(/node_modules\/([^/]+)/)?.[1]))].filter(Boolean).sort();
const licences = packages.map((name) => {
  const { version, license } = JSON.parse(readFileSync(here(`node_modules/${name}/package.json`)));
  return `${name} ${version} (${license})\n\n${readFileSync(here(`node_modules/${name}/LICENSE`), "utf8").trim()}\n`;
});
writeFileSync(`${out}/THIRD_PARTY_LICENSES`, `viewer.js contains these packages.\n\n${licences.join(`\n${"-".repeat(72)}\n\n`)}`);

const sources = [...readdirSync(here("src")).map((name) => `src/${name}`), "build.mjs", "package-lock.json", "package.json"].sort();
const hash = createHash("sha256");
for (const name of sources) hash.update(`${name}\n`).update(readFileSync(here(name)));
writeFileSync(`${out}/sources.sha256`, `${hash.digest("hex")}\n`);
