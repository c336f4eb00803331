// Bundles src/ into bundle/: one script, one style sheet, the licences of what is inside, and the hash of the sources.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const here = (name) => new URL(name, import.meta.url).pathname;
const out = process.argv[2] ?? here("bundle");
const common = { bundle: true, minify: true, legalComments: "none", charset: "utf8", target: "es2022", logLevel: "warning" };

// Of d3-selection the page keeps what d3-zoom calls: 7 kB less, and none of what could write markup.
const KEPT = ["filter", "selection", "call", "node", "each", "style", "property", "datum", "on"];
const trimmed = {
  name: "trimmed-d3-selection",
  setup: ({ onLoad }) =>
    onLoad({ filter: /d3-selection\.mjs$/ }, ({ path }) => {
      const methods = /^  (\[?[\w.]+\]?): selection_\w+,?\n/gm;
      const contents = readFileSync(path, "utf8").replace(methods, (line, name) => (KEPT.includes(name) ? line : ""));
      return { contents };
    }),
};

const { metafile } = await build({
  ...common,
  entryPoints: [here("src/main.js")],
  outfile: `${out}/viewer.js`,
  format: "iife",
  metafile: true,
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
