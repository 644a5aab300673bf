// The host services as functions see them: the classic synchronous objects (`hostServices`, and the later spelling
// `kv(bucket)`, `objectStore(bucket)`, `http`, `messaging`) and their promise-based twins for the module form. Both are
// built by the same code from one `call`, which either blocks or returns a promise.
((window) => {
  const { core, internals, primordials } = window.__bootstrap;
  const { ops } = core;
  const { ArrayIsArray, JSONParse, ObjectAssign, ObjectEntries, ObjectFreeze, ObjectKeys, PromisePrototypeThen, String } =
    primordials;

  class HostServiceError extends Error {}
  Object.defineProperty(HostServiceError.prototype, "name", { value: "HostServiceError", enumerable: false });
  core.registerErrorClass("HostServiceError", HostServiceError);

  // Runs an operation and converts its answer; the two ways differ only in whether the isolate waits.
  const callSync = (operation, payload, convert) => convert(ops.op_nex_host_call_sync(operation, payload));
  const callAsync = (operation, payload, convert) =>
    PromisePrototypeThen(ops.op_nex_host_call(operation, payload), convert);

  const NOTHING = new Uint8Array(0);

  function invalid(message) {
    return ObjectAssign(new TypeError(message), { code: "INVALID_ARGUMENT" });
  }

  function text(value, message) {
    if (typeof value !== "string" || value === "") throw invalid(message);
    return value;
  }

  function isBytesLike(value) {
    return typeof value === "string" || core.isAnyArrayBuffer(value) || core.isArrayBufferView(value);
  }

  // Strings are accepted wherever bytes are.
  function bytes(value, message) {
    if (typeof value === "string") return core.encode(value);
    if (core.isArrayBufferView(value)) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
    if (core.isAnyArrayBuffer(value)) return new Uint8Array(value);
    throw invalid(`${message}, as a Uint8Array, an ArrayBuffer or a string`);
  }

  function bucketName(bucket) {
    if (bucket === undefined || bucket === null) return null;
    return text(bucket, "bucket name must be a non-empty string");
  }

  function milliseconds(value) {
    if (value === undefined || value === null) return null;
    if (typeof value !== "number" || !(value > 0) || value > 0xffffffff) {
      throw invalid("timeout must be a positive number of milliseconds");
    }
    return Math.ceil(value);
  }

  // Pairs of strings from an object, a Map, an array of pairs or anything else that iterates over pairs; a value that
  // is an array gives one pair an element. Line breaks would let a value forge further headers.
  function headerPairs(headers) {
    if (headers === undefined || headers === null) return [];
    const entries = headers[Symbol.iterator] === undefined ? ObjectEntries(headers) : [...headers];
    const pairs = [];
    for (const [name, values] of entries) {
      if (!/^[!-9;-~]+$/.test(name)) throw invalid(`invalid header name: ${JSON.stringify(name)}`);
      for (const value of ArrayIsArray(values) ? values : [values]) {
        const line = String(value);
        if (/[\r\n\0]/.test(line)) throw invalid(`invalid value of header ${name}: it contains a line break`);
        pairs.push([name, line]);
      }
    }
    return pairs;
  }

  const value = ([, payload]) => payload;
  const nothing = () => undefined;

  function objectInfo(info) {
    if (info.description === null) delete info.description;
    return info;
  }

  function keyValue(call, bucket) {
    const remove = (key) => call({ kvDelete: { bucket, key: text(key, "key is required") } }, NOTHING, nothing);
    return {
      get: (key) => call({ kvGet: { bucket, key: text(key, "key is required") } }, NOTHING, value),
      set(key, data) {
        const operation = { kvSet: { bucket, key: text(key, "key and value are required") } };
        return call(operation, bytes(data, "key and value are required"), nothing);
      },
      delete: remove,
      del: remove,
      keys: () => call({ kvKeys: { bucket } }, NOTHING, ([{ keys }]) => keys),
    };
  }

  function objectStore(call, bucket) {
    const remove = (name) => call({ objectDelete: { bucket, name: text(name, "name is required") } }, NOTHING, nothing);
    return {
      get: (name) => call({ objectGet: { bucket, name: text(name, "name is required") } }, NOTHING, value),
      put(name, data) {
        const operation = { objectPut: { bucket, name: text(name, "name and value are required") } };
        return call(operation, bytes(data, "name and value are required"), ([{ object }]) => objectInfo(object));
      },
      delete: remove,
      del: remove,
      list: () => call({ objectList: { bucket } }, NOTHING, ([{ objects }]) => objects.map(objectInfo)),
    };
  }

  // A NATS message as received; its bytes are a view of the payload that came with it.
  class Message {
    constructor(subject, reply, headers, data) {
      this.subject = subject;
      this.reply = reply;
      this.headers = new MessageHeaders(headers);
      this.data = data;
    }
    text() {
      return core.decode(this.data);
    }
    json() {
      return JSONParse(core.decode(this.data));
    }
  }

  // Message headers: names are case-sensitive and may repeat, as in NATS.
  class MessageHeaders {
    #pairs;
    constructor(pairs) {
      this.#pairs = pairs;
    }
    get(name) {
      return this.#pairs.find((pair) => pair[0] === name)?.[1] ?? null;
    }
    getAll(name) {
      return this.#pairs.filter((pair) => pair[0] === name).map((pair) => pair[1]);
    }
    has(name) {
      return this.#pairs.some((pair) => pair[0] === name);
    }
    keys() {
      return [...new Set(this.#pairs.map((pair) => pair[0]))];
    }
    *[Symbol.iterator]() {
      for (const [name, line] of this.#pairs) yield [name, line];
    }
    toJSON() {
      return Object.fromEntries(this.keys().map((name) => [name, this.getAll(name).join(", ")]));
    }
  }

  function messages([result, payload]) {
    let offset = 0;
    return result.messages.map(({ subject, headers, len }) => {
      const data = payload.slice(offset, offset + len);
      offset += len;
      return new Message(subject, undefined, headers, data);
    });
  }

  // `receive` turns a reply into what the form hands out: bytes in the classic one, a message in modules.
  function messaging(call, receive) {
    const required = "subject and payload are required";
    return {
      publish(subject, payload, options) {
        const operation = { publish: { subject: text(subject, required), headers: headerPairs(options?.headers) } };
        return call(operation, bytes(payload, required), nothing);
      },
      request(subject, payload, options) {
        const operation = {
          request: {
            subject: text(subject, required),
            headers: headerPairs(options?.headers),
            timeoutMs: milliseconds(options?.timeout),
          },
        };
        return call(operation, bytes(payload, required), (answer) => receive(messages(answer)[0]));
      },
      requestMany(subject, payload, options) {
        const max = options?.max ?? null;
        if (max !== null && !(Number.isInteger(max) && max > 0 && max <= 0xffffffff)) {
          throw invalid("max must be a positive integer");
        }
        const operation = {
          requestMany: {
            subject: text(subject, required),
            headers: headerPairs(options?.headers),
            timeoutMs: milliseconds(options?.timeout),
            maxReplies: max,
          },
        };
        return call(operation, bytes(payload, required), (answer) => messages(answer).map(receive));
      },
    };
  }

  // `Content-Type`, as Go's HTTP library spelled header names for the functions written against it.
  const canonical = (name) => name.replace(/(^|-)[a-z]/g, (letter) => letter.toUpperCase());

  function httpResponse([{ http }, payload]) {
    const headers = {};
    for (const [name, line] of http.headers) {
      const key = canonical(name);
      headers[key] = key in headers ? `${headers[key]}, ${line}` : line;
    }
    const response = { status: http.status, headers, body: payload };
    if (payload.length > 0) response.response = core.decode(payload);
    return response;
  }

  // Every method takes (url, body?, options?) or (url, options?).
  function http(call) {
    const request = (method) => (url, ...rest) => {
      const hasBody = rest.length > 1 || rest[0] === undefined || rest[0] === null || isBytesLike(rest[0]);
      const [body, options] = hasBody ? rest : [undefined, rest[0]];
      const operation = {
        http: {
          method,
          url: text(url === undefined ? url : String(url), "url is required"),
          headers: headerPairs(options?.headers),
          timeoutMs: milliseconds(options?.timeout),
        },
      };
      const payload = body === undefined || body === null ? NOTHING : bytes(body, "body must be given");
      return call(operation, payload, httpResponse);
    };
    const remove = request("DELETE");
    return {
      get: request("GET"),
      post: request("POST"),
      put: request("PUT"),
      patch: request("PATCH"),
      delete: remove,
      del: remove,
      head: request("HEAD"),
    };
  }

  // Wrong arguments reject, too, in the promise-based API.
  function promised(methods) {
    for (const name of ObjectKeys(methods)) {
      const method = methods[name];
      methods[name] = async (...args) => method(...args);
    }
    return ObjectFreeze(methods);
  }

  function requiredBucket(open) {
    return (bucket) => {
      if (bucket === undefined || bucket === null) throw invalid("bucket name is required");
      return ObjectFreeze(open(callSync, bucketName(bucket)));
    };
  }

  function installClassic() {
    const data = (message) => message.data;
    const objects = ObjectFreeze(objectStore(callSync, null));
    const hostServices = ObjectFreeze({
      kv: ObjectFreeze(keyValue(callSync, null)),
      objectStore: objects,
      objectstore: objects,
      messaging: ObjectFreeze(messaging(callSync, data)),
      http: ObjectFreeze(http(callSync)),
    });
    const globals = {
      hostServices,
      kv: requiredBucket(keyValue),
      objectStore: requiredBucket(objectStore),
      objectstore: requiredBucket(objectStore),
      messaging: hostServices.messaging,
      http: hostServices.http,
    };
    for (const name of ObjectKeys(globals)) {
      Object.defineProperty(window, name, { value: globals[name], writable: true, configurable: true });
    }
  }

  function moduleEnv(vars) {
    const nats = messaging(callAsync, (message) => message);
    const requestMany = nats.requestMany;
    promised(nats);
    return ObjectFreeze({
      vars: ObjectFreeze(vars),
      kv: (bucket) => promised(keyValue(callAsync, bucketName(bucket))),
      objects: (bucket) => promised(objectStore(callAsync, bucketName(bucket))),
      nats: ObjectFreeze({
        publish: nats.publish,
        request: nats.request,
        async *requestMany(subject, payload, options) {
          yield* await requestMany(subject, payload, options);
        },
      }),
      http: promised(http(callAsync)),
    });
  }

  installClassic();
  ObjectAssign(internals, { Message, bytes, headerPairs, isBytesLike, moduleEnv });
})(globalThis);
