// PUT /?ID deploys a function, POST /?ID calls it, in a worker thread of its own that the first call makes; DELETE ends
// it. The sources are scripts, because a thread that starts from text takes nothing else.
import { createServer } from "node:http";
import { buffer } from "node:stream/consumers";
import { Worker } from "node:worker_threads";

const [path] = process.argv.slice(2);
const sources = new Map();
const workers = new Map();

function call(id, payload) {
  let worker = workers.get(id);
  if (!worker) {
    worker = new Worker(sources.get(id), { eval: true });
    workers.set(id, worker);
  }
  return new Promise((resolve, reject) => {
    worker.once("message", resolve);
    worker.once("error", reject);
    worker.postMessage(payload);
  });
}

async function answer(request, id) {
  switch (request.method) {
    case "PUT":
      sources.set(id, (await buffer(request)).toString());
      return "";
    case "DELETE":
      await workers.get(id)?.terminate();
      workers.delete(id);
      sources.delete(id);
      return "";
    default:
      return call(id, new Uint8Array(await buffer(request)));
  }
}

const server = createServer((request, response) => {
  answer(request, request.url).then(
    (body) => response.end(body),
    (error) => response.writeHead(500).end(String(error)),
  );
});
server.listen(path, () => console.log("ready"));
