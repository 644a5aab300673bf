// PUT /?ID deploys a function, POST /?ID calls it, in an isolate of its own that the first call makes.
// workerd cannot be told to drop an isolate, so DELETE only forgets the source; an idle one takes 1.6 MB and no time.
const sources = new Map();

export default {
  async fetch(request, env) {
    const id = new URL(request.url).search;
    switch (request.method) {
      case "PUT":
        sources.set(id, await request.text());
        return new Response();
      case "DELETE":
        sources.delete(id);
        return new Response();
      default: {
        const worker = env.LOADER.get(id, () => ({
          compatibilityDate: "2026-11-01",
          mainModule: "main.js",
          modules: { "main.js": sources.get(id) },
          globalOutbound: null,
        }));
        return worker.getEntrypoint().fetch(request);
      }
    }
  },
};
