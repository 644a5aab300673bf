// Deno as an echo over HTTP on a UNIX socket.
const [path] = Deno.args;

Deno.serve({
  path,
  onListen: () => console.log("ready"),
  handler: async (request) => new Response(await request.bytes()),
});
