// PUT /?ID deploys a function, POST /?ID calls it, in a worker of its own that the first call makes; DELETE ends it.
const [path] = Deno.args;
const sources = new Map();
const workers = new Map();

function call(id, payload) {
  let worker = workers.get(id);
  if (!worker) {
    worker = new Worker(sources.get(id), { type: "module" });
    workers.set(id, worker);
  }
  return new Promise((resolve, reject) => {
    worker.onmessage = (event) => resolve(event.data);
    worker.onerror = (event) => reject(new Error(event.message));
    worker.postMessage(payload, [payload.buffer]);
  });
}

Deno.serve({
  path,
  onListen: () => console.log("ready"),
  handler: async (request) => {
    const id = new URL(request.url).search;
    switch (request.method) {
      case "PUT": {
        const source = new Blob([await request.bytes()], { type: "application/javascript" });
        sources.set(id, URL.createObjectURL(source));
        return new Response();
      }
      case "DELETE":
        workers.get(id)?.terminate();
        workers.delete(id);
        URL.revokeObjectURL(sources.get(id));
        sources.delete(id);
        return new Response();
      default:
        return new Response(await call(id, await request.bytes()));
    }
  },
});
