// Bundles src/ into bundle/: one script, one style sheet and the hash of the sources. Nothing of other packages is inside.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const here = (name) => new URL(name, import.meta.url).pathname;
const out = process.argv[2] ?? here("bundle");
const common = { bundle: true, minify: true, legalComments: "none", charset: "utf8", target: "es2022", logLevel: "warning" };

await build({ ...common, entryPoints: [here("src/main.js")], outfile: `${out}/viewer.js`, format: "iife" });
await build({ ...common, entryPoints: [here("src/viewer.css")], outfile: `${out}/viewer.css` });

const script = readFileSync(`${out}/viewer.js`, "utf8");
for (const unsafe of ["</script", "<!--", "innerHTML", "fetch(", "eval("])
  if (script.includes(unsafe)) throw new Error(`the bundle holds ${unsafe}`);

const sources = [...readdirSync(here("src")).map((name) => `src/${name}`), "build.mjs", "package-lock.json", "package.json"].sort();
const hash = createHash("sha256");
for (const name of sources) hash.update(`${name}\n`).update(readFileSync(here(name)));
writeFileSync(`${out}/sources.sha256`, `${hash.digest("hex")}\n`);
