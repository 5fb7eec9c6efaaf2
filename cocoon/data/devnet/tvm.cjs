// The TVM of @ton/sandbox behind one JSON request per line on stdin and one JSON answer per line on stdout.
// usage: node tvm.cjs NODE_MODULES. Requests come one at a time; the process ends with its stdin.
"use strict";
const { createRequire } = require("node:module");
const { join } = require("node:path");
const load = createRequire(join(process.argv[2], "x.js"));
const { Executor } = load("@ton/sandbox");
const { Cell, Address, parseTuple } = load("@ton/core");

const cell = (base64) => Cell.fromBase64(base64);
let config = null; // the whole configuration, base64

const operations = {
  version: (tvm) => tvm.getVersion(),
  config: (_, request) => {
    config = request.boc;
    return {};
  },
  transaction: async (tvm, request) => {
    const { result } = await tvm.runTransaction({
      config,
      libs: null,
      verbosity: "short",
      shardAccount: request.account,
      message: cell(request.message),
      now: request.now,
      lt: BigInt(request.lt),
      randomSeed: Buffer.from(request.seed, "hex"),
      ignoreChksig: false,
      debugEnabled: false,
    });
    if (!result.success) return { refused: String(result.error), exit_code: result.vmResults?.vmExitCode ?? null };
    return { transaction: result.transaction, account: result.shardAccount };
  },
  method: async (tvm, request) => {
    const { output } = await tvm.runGetMethod({
      code: cell(request.code),
      data: cell(request.data),
      methodId: request.method,
      stack: request.stack ? parseTuple(cell(request.stack)) : [],
      config,
      verbosity: "short",
      address: Address.parse(request.address),
      unixTime: request.now,
      balance: BigInt(request.balance),
      randomSeed: Buffer.alloc(32),
      gasLimit: 1000000n,
      debugEnabled: false,
    });
    if (!output.success) return { refused: String(output.error) };
    return { stack: output.stack, exit_code: output.vm_exit_code, gas: Number(output.gas_used) };
  },
};

(async () => {
  const tvm = await Executor.create();
  let rest = "";
  let queue = Promise.resolve();
  const answer = async (line) => {
    let result;
    try {
      const request = JSON.parse(line);
      result = await operations[request.op](tvm, request);
    } catch (error) {
      result = { error: String(error) };
    }
    process.stdout.write(JSON.stringify(result) + "\n");
  };
  process.stdin.setEncoding("utf8");
  process.stdin.on("data", (data) => {
    const lines = (rest + data).split("\n");
    rest = lines.pop();
    for (const line of lines) queue = queue.then(() => answer(line));
  });
  process.stdin.on("end", () => queue.then(() => process.exit(0)));
})();
