// What calls a function and takes its result: `Reply`, the module form's `msg` and `ctx`, the reply rules, and text
// coding. Leaves one object on the global, which the engine takes away before any code of a tenant runs.
//
// A function may replace anything that it can reach: prototypes, iterators, globals. So the host's JavaScript, here and
// beside this, reaches nothing by way of them: it calls the methods it took before any function ran (`primordials`),
// walks arrays by index, gives descriptors no prototype, and is in strict mode, which hides it from its callees.
"use strict";
((window) => {
  const { core, internals, primordials } = window.__bootstrap;
  const { ops } = core;
  const {
    ArrayBufferIsView,
    Error,
    FunctionPrototypeCall,
    JSONStringify,
    ObjectDefineProperty,
    ObjectFreeze,
    Promise,
    PromisePrototypeThen,
    RangeError,
    RegExpPrototypeExec,
    SymbolAsyncIterator,
    TypeError,
    TypedArrayPrototypeGetSymbolToStringTag,
    Uint8Array,
  } = primordials;
  const { Message, abortWith, bytes, headerPairs, moduleEnv, named, newAbortController, push, settleHostCall, signalOf } =
    internals;

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
      const copy = [];
      for (let index = 0; index < this.#headers.length; index++) {
        push(copy, [this.#headers[index][0], this.#headers[index][1]]);
      }
      return copy;
    }
    static isReply(value) {
      return #body in value;
    }
    static body(reply) {
      return reply.#body;
    }
    static headers(reply) {
      return reply.#headers;
    }
  }
  const { isReply, body: bodyOf, headers: headersOf } = Reply;
  delete Reply.isReply;
  delete Reply.body;
  delete Reply.headers;

  // Design section 4: bytes as they are, strings as UTF-8, undefined as nothing, everything else as JSON.
  function encode(value) {
    if (value === undefined || typeof value === "string" || core.isAnyArrayBuffer(value)) return value;
    if (ArrayBufferIsView(value) && TypedArrayPrototypeGetSymbolToStringTag(value) === "Uint8Array") return value;
    const json = JSONStringify(value);
    if (json === undefined) throw new TypeError(`the function returned a ${typeof value}, which has no JSON form`);
    return json;
  }

  function isObject(value) {
    return typeof value === "object" && value !== null;
  }

  // Streams what the generator yields; a reply that is too large ends it, and the invocation with it.
  async function stream(id, generator) {
    for await (const value of generator) {
      const fits =
        isObject(value) && isReply(value)
          ? ops.op_nex_stream(id, encode(bodyOf(value)), headersOf(value))
          : ops.op_nex_stream(id, encode(value), null);
      if (!fits) break;
    }
  }

  // Applies the reply rules to a result that is neither a string nor bytes nor a promise. Gives what the engine is to go
  // on with, a plain body or a promise, or `null` when the invocation has ended.
  function finish(id, value) {
    if (isObject(value)) {
      if (isReply(value)) {
        ops.op_nex_finish(id, encode(bodyOf(value)), headersOf(value));
        return null;
      }
      if (core.isGeneratorObject(value) && SymbolAsyncIterator in value) return stream(id, value);
      if (typeof value.then === "function") return new Promise((resolve) => resolve(value));
    }
    return encode(value);
  }

  class Context {
    deadline;
    #key;
    #controller = undefined;
    constructor(key, deadline) {
      this.#key = key;
      this.deadline = deadline;
    }
    get id() {
      return `${workloadId}-${this.#key}`;
    }
    get signal() {
      if (this.#controller === undefined) {
        this.#controller = newAbortController();
        ops.op_nex_signal(this.#key, this.#controller);
      }
      return signalOf(this.#controller);
    }
    waitUntil(promise) {
      const settled = () => ops.op_nex_wait_until(false);
      const failed = (error) => {
        settled();
        internals.logError("waitUntil:", error);
      };
      PromisePrototypeThen(new Promise((resolve) => resolve(promise)), settled, failed);
      ops.op_nex_wait_until(true);
    }
  }

  let env;
  let workloadId;

  function assign(id, vars) {
    workloadId = id;
    env = moduleEnv(vars);
  }

  function callMessage(handler, receiver, key, deadline, subject, reply, headers, data) {
    return FunctionPrototypeCall(
      handler,
      receiver,
      new Message(subject, reply, headers, data),
      env,
      new Context(key, deadline),
    );
  }

  function abort(controller, message) {
    abortWith(controller, named(new Error(message), "TimeoutError"));
  }

  class TextEncoder {
    get encoding() {
      return "utf-8";
    }
    encode(input = "") {
      const text = `${input}`;
      const encoded = new Uint8Array(core.byteLength(text));
      ops.op_nex_encode_into(text, encoded);
      return encoded;
    }
  }

  const UTF_8 = /^\s*utf-?8\s*$/i;

  class TextDecoder {
    constructor(label = "utf-8") {
      const name = `${label}`;
      if (RegExpPrototypeExec(UTF_8, name) === null) {
        throw new RangeError(`unsupported encoding: ${ops.op_nex_head(name, 100)}; only utf-8 is`);
      }
    }
    get encoding() {
      return "utf-8";
    }
    decode(input) {
      return input === undefined ? "" : core.decode(bytes(input, "input must be given"));
    }
  }

  const globals = {
    __proto__: null,
    Reply,
    TextDecoder,
    TextEncoder,
    ...internals.timers,
    structuredClone(value) {
      return core.structuredClone(value);
    },
  };
  for (const name in globals) {
    ObjectDefineProperty(window, name, {
      __proto__: null,
      value: globals[name],
      writable: true,
      enumerable: false,
      configurable: true,
    });
  }

  // Takes everything of the host off the global. Shared memory goes, too: with it a function could build a
  // high-resolution clock, or wait for ever on a lock.
  function scrub() {
    delete window.Deno;
    delete window.__bootstrap;
    delete window.__nex;
    delete window.SharedArrayBuffer;
    delete window.Atomics;
  }

  function logRejection(reason) {
    internals.logError("Uncaught (in promise)", reason);
  }

  window.__nex = ObjectFreeze({ abort, assign, callMessage, finish, logRejection, scrub, settleHostCall });
})(globalThis);
