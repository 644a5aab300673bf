// Run once while the snapshot is made, after everything else, and thrown away: V8 compiles a function when it is called
// for the first time, and what is called here is in the snapshot compiled, so that no start and no first call compiles
// it. It calls nothing that reaches the host, and leaves nothing behind: `assign` is called again for each function.
"use strict";
((window) => {
  const { assign, callMessage, finish } = window.__nex;
  const data = new Uint8Array([123, 125]);
  const classic = () => [hostServices.kv, hostServices.objectStore, hostServices.messaging, hostServices.http];
  const module = (msg, env, ctx) => {
    msg.headers.get("a");
    msg.headers.has("b");
    const { vars, nats, http } = env;
    return [msg.text(), msg.json(), ctx.id, vars.KEY, nats.publish, http.get, env.kv("bucket"), env.objects("bucket")];
  };
  assign("warm-up", { KEY: "value" });
  finish(1, classic());
  finish(1, callMessage(module, undefined, 1, 0, "subject", "reply", [["a", "1"]], data));
  finish(1, { then() {} });
  new TextDecoder().decode(data);
  new Reply("body", { headers: { a: "1", b: ["2"] } }).headers;
})(globalThis);
