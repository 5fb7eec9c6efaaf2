// Compiles Tolk to code and prints one JSON object: {name: {code_boc_base64, code_hash_hex} or {error}}.
// usage: node build.mjs TOLK_JS_FOLDER NAME=ENTRY.tolk...   The compiler is handed in, so nothing is looked up.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

const [compilerFolder, ...targets] = process.argv.slice(2);
const { runTolkCompiler, getTolkCompilerVersion } = createRequire(join(compilerFolder, "x.js"))(compilerFolder);

const built = { compiler: `tolk ${await getTolkCompilerVersion()}`, contracts: {} };
for (const target of targets) {
  const [name, entry] = target.split("=");
  const result = await runTolkCompiler({
    entrypointFileName: entry,
    fsReadCallback: (path) => readFileSync(path, "utf8"),
  });
  built.contracts[name] =
    result.status === "ok"
      ? { code_boc_base64: result.codeBoc64, code_hash_hex: result.codeHashHex.toLowerCase() }
      : { error: result.message };
}
console.log(JSON.stringify(built));
