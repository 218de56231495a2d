/* Bundles the page into dist: one HTML file, a style, scripts named by their content, and the
   licences of all that is in them. A package under another licence than these stops the build. */

import { build } from "esbuild";
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const ALLOWED = ["0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT"];

const here = dirname(fileURLToPath(import.meta.url));
process.chdir(here);

/** Name and folder of every package that a bundle was made of. */
function packagesOf(metafile) {
  const found = new Map();
  for (const output of Object.values(metafile.outputs)) {
    for (const input of Object.keys(output.inputs)) {
      const folder = input.match(/^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//)?.[1];
      if (folder) found.set(folder.replace(/^.*node_modules\//, ""), folder);
    }
  }
  return [...found].sort(([one], [other]) => one.localeCompare(other));
}

function licences(packages) {
  return packages.map(([name, folder]) => {
    const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    if (!ALLOWED.includes(license)) {
      throw new Error(`${name} ${version} is under ${license}, expected one of ${ALLOWED}; leave it out`);
    }
    const file = readdirSync(folder).find((one) => /^licen[cs]e/i.test(one));
    const text = file ? readFileSync(join(folder, file), "utf8").trim() : "";
    return `${name} ${version} (${license})\n\n${text}\n`;
  });
}

/** Address, from the page, of what an entry became. */
function made(metafile, entry) {
  const [path] = Object.entries(metafile.outputs).find(([, output]) => output.entryPoint === entry);
  return `assets/${basename(path)}`;
}

const fresh = "dist.new";
rmSync(fresh, { recursive: true, force: true });
const { metafile } = await build({
  entryPoints: ["src/main.ts", "src/page.css", "src/icon.svg"],
  outdir: join(fresh, "assets"),
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  assetNames: "[name]-[hash]",
  loader: { ".svg": "copy" },
  bundle: true,
  splitting: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  // Codecs of chunked archives, which nobody uploads; they would double the page.
  external: ["numcodecs/*"],
  metafile: true,
});
mkdirSync(fresh, { recursive: true });
const page = readFileSync("src/index.html", "utf8").replace(/%(\S+?)%/g, (_, entry) => made(metafile, entry));
writeFileSync(join(fresh, "index.html"), page);
writeFileSync(join(fresh, "licences.txt"), licences(packagesOf(metafile)).join(`\n${"-".repeat(80)}\n\n`));

// Whoever serves the page meanwhile finds the old one or the new one.
if (existsSync("dist")) renameSync("dist", "dist.old");
renameSync(fresh, "dist");
rmSync("dist.old", { recursive: true, force: true });

const bytes = Object.values(metafile.outputs).reduce((sum, output) => sum + output.bytes, 0);
console.log(`serve/web/dist: ${(bytes / 1e3).toFixed(0)} kB`);
