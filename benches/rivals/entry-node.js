
const { parentPort } = require("node:worker_threads");
parentPort.on("message", (data) => parentPort.postMessage(handle(new TextDecoder().decode(data))));
