// What calls a function and takes its result: `Reply`, the module form's `msg` and `ctx`, the reply rules, timers and
// text coding. Leaves one object on the global, which the engine takes away before any code of a tenant runs.
((window) => {
  const { core, internals, primordials } = window.__bootstrap;
  const { ops } = core;
  const { JSONStringify, ObjectDefineProperty, ObjectFreeze, PromisePrototypeThen, PromiseResolve } = primordials;
  const { Message, bytes, headerPairs, isBytesLike, moduleEnv } = internals;

  // A reply with headers: `new Reply(body, { headers })`.
  class Reply {
    #body;
    #headers;
    constructor(body, options) {
      this.#body = body;
      this.#headers = headerPairs(options?.headers);
    }
    get body() {
      return this.#body;
    }
    get headers() {
      return this.#headers.map((pair) => [...pair]);
    }
    static isReply(value) {
      return #body in value;
    }
    static parts(reply) {
      return [reply.#body, reply.#headers];
    }
  }
  const { isReply, parts } = Reply;
  delete Reply.isReply;
  delete Reply.parts;

  // Design section 4: bytes as they are, strings as UTF-8, undefined as nothing, everything else as JSON.
  function encode(value) {
    if (value === undefined || typeof value === "string") return value;
    if (core.isAnyArrayBuffer(value) || ArrayBuffer.isView(value) && value instanceof Uint8Array) return bytes(value);
    const json = JSONStringify(value);
    if (json === undefined) throw new TypeError(`the function returned a ${typeof value}, which has no JSON form`);
    return json;
  }

  function isObject(value) {
    return typeof value === "object" && value !== null;
  }

  function emit(op, id, value) {
    if (isObject(value) && isReply(value)) {
      const [body, headers] = parts(value);
      op(id, encode(body), headers);
    } else {
      op(id, encode(value), null);
    }
  }

  async function stream(id, generator) {
    for await (const value of generator) emit(ops.op_nex_stream, id, value);
  }

  const fail = (id, error) => {
    forget(id);
    ops.op_nex_fail(id, error);
  };

  function settle(id, promise) {
    PromisePrototypeThen(PromisePrototypeThen(promise, (value) => finish(id, value)), undefined, (error) => fail(id, error));
  }

  // Takes the result of an invocation; a promise or an async generator ends it later.
  function finish(id, value) {
    if (isObject(value)) {
      if (core.isPromise(value)) return settle(id, value);
      if (core.isGeneratorObject(value) && Symbol.asyncIterator in value) return settle(id, stream(id, value));
      if (!isReply(value) && !isBytesLike(value) && typeof value.then === "function") {
        return settle(id, PromiseResolve(value));
      }
    }
    emit(ops.op_nex_finish, id, value);
    forget(id);
  }

  // Contexts of invocations in flight whose `signal` was taken, so that it can be aborted.
  const contexts = new Map();
  const forget = (id) => contexts.delete(id);

  class Context {
    #signal = undefined;
    #key;
    constructor(key, deadline) {
      this.#key = key;
      this.deadline = deadline;
    }
    get id() {
      return `${workloadId}-${this.#key}`;
    }
    get signal() {
      if (this.#signal === undefined) {
        const controller = new AbortController();
        this.#signal = controller.signal;
        contexts.set(this.#key, controller);
      }
      return this.#signal;
    }
    waitUntil(promise) {
      ops.op_nex_wait_until(true);
      const done = () => ops.op_nex_wait_until(false);
      PromisePrototypeThen(PromiseResolve(promise), done, (error) => {
        done();
        console.error("waitUntil:", error);
      });
    }
  }

  let env;
  let workloadId;

  function assign(id, vars) {
    workloadId = id;
    env = moduleEnv(vars);
  }

  function callMessage(handler, receiver, key, deadline, subject, reply, headers, data) {
    const message = new Message(subject, reply, headers ?? [], data);
    return handler.call(receiver, message, env, new Context(key, deadline));
  }

  function abort(id, message) {
    const controller = contexts.get(id);
    forget(id);
    controller?.abort(ObjectDefineProperty(new Error(message), "name", { value: "TimeoutError" }));
  }

  // Timers, with numeric ids as on the web.
  const timers = new Map();
  let lastTimer = 0;

  function startTimer(callback, delay, args, repeat) {
    if (typeof callback !== "function") throw new TypeError("the timer's callback must be a function");
    const id = ++lastTimer;
    const run = () => {
      if (!repeat) timers.delete(id);
      callback(...args);
    };
    timers.set(id, core.createTimer(run, delay, undefined, repeat, true));
    return id;
  }

  function stopTimer(id) {
    const timer = timers.get(id);
    if (timer === undefined) return;
    timers.delete(id);
    core.cancelTimer(timer);
  }

  class TextEncoder {
    get encoding() {
      return "utf-8";
    }
    encode(input = "") {
      return core.encode(`${input}`);
    }
  }

  class TextDecoder {
    constructor(label = "utf-8") {
      if (!/^\s*utf-?8\s*$/i.test(label)) throw new RangeError(`unsupported encoding: ${label}; only utf-8 is`);
    }
    get encoding() {
      return "utf-8";
    }
    decode(input) {
      return input === undefined ? "" : core.decode(bytes(input, "input must be given"));
    }
  }

  const globals = {
    Reply,
    TextDecoder,
    TextEncoder,
    clearInterval: stopTimer,
    clearTimeout: stopTimer,
    setInterval: (callback, delay, ...args) => startTimer(callback, delay, args, true),
    setTimeout: (callback, delay, ...args) => startTimer(callback, delay, args, false),
    structuredClone: (value) => core.structuredClone(value),
  };
  for (const name of Object.keys(globals)) {
    ObjectDefineProperty(window, name, { value: globals[name], writable: true, configurable: true });
  }

  // Takes everything of the host off the global. Shared memory goes, too: with it a function could build a
  // high-resolution clock, or wait for ever on a lock.
  function scrub() {
    for (const name of ["Deno", "__bootstrap", "__nex", "SharedArrayBuffer", "Atomics"]) delete window[name];
  }

  window.__nex = ObjectFreeze({ abort, assign, callMessage, finish, scrub });
})(globalThis);
