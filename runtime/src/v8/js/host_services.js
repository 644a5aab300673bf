// The host services as functions see them: the classic synchronous objects (`hostServices`, and the later spelling
// `kv(bucket)`, `objectStore(bucket)`, `http`, `messaging`) and their promise-based twins for the module form. Both are
// built by the same code from one `call`, which either blocks or returns a promise.
"use strict";
((window) => {
  const { core, internals, primordials } = window.__bootstrap;
  const { ops } = core;
  const {
    ArrayBufferIsView,
    Error,
    MapPrototypeDelete,
    MapPrototypeGet,
    MapPrototypeSet,
    MathCeil,
    NumberIsInteger,
    ObjectDefineProperty,
    ObjectFreeze,
    ObjectKeys,
    Promise,
    ReflectApply,
    SafeMap,
    String,
    StringPrototypeToUpperCase,
    TypedArrayPrototypeGetBuffer,
    TypedArrayPrototypeGetByteLength,
    TypedArrayPrototypeGetByteOffset,
    TypedArrayPrototypeSlice,
    DataViewPrototypeGetBuffer,
    DataViewPrototypeGetByteLength,
    DataViewPrototypeGetByteOffset,
    Uint8Array,
  } = primordials;
  const { Message, define, headerPairs, invalid, push } = internals;

  // Characters of a key, name, subject or URL; the services themselves allow less.
  const MAX_TEXT = 65_536;

  class HostServiceError extends Error {}
  ObjectDefineProperty(HostServiceError.prototype, "name", { __proto__: null, value: "HostServiceError" });
  ObjectFreeze(HostServiceError.prototype);
  ObjectFreeze(HostServiceError);

  // Its stack leads to the call, so it is made there, before anybody knows whether it will be needed.
  function failure() {
    return new HostServiceError();
  }

  function failed(error, code, message) {
    ObjectDefineProperty(error, "message", {
      __proto__: null,
      value: message,
      writable: true,
      enumerable: false,
      configurable: true,
    });
    return define(error, "code", code);
  }

  // What the host answered, `[result, payload length, code, message]`, as the function is to have it. The payload is made
  // here so that it counts as the function's memory.
  function convertAnswer(answer, convert) {
    const length = answer[1];
    const payload = new Uint8Array(length);
    if (length > 0) ops.op_nex_take_payload(payload);
    return convert(answer[0], payload);
  }

  function callSync(operation, payload, convert) {
    const answer = ops.op_nex_host_call_sync(operation, payload);
    if (answer[2] !== null) throw failed(failure(), answer[2], answer[3]);
    return convertAnswer(answer, convert);
  }

  const running = new SafeMap();
  let lastCall = 0;

  function callAsync(operation, payload, convert) {
    lastCall = (lastCall + 1) & 0x7fffffff;
    const id = lastCall;
    const error = failure();
    return new Promise((resolve, reject) => {
      const refused = ops.op_nex_host_call(id, operation, payload);
      if (refused !== null) reject(failed(error, refused[2], refused[3]));
      else MapPrototypeSet(running, id, { __proto__: null, resolve, reject, convert, error });
    });
  }

  // The engine has the answer of a call.
  function settleHostCall(id, answer) {
    const call = MapPrototypeGet(running, id);
    if (call === undefined) return;
    MapPrototypeDelete(running, id);
    if (answer[2] !== null) {
      call.reject(failed(call.error, answer[2], answer[3]));
      return;
    }
    let value;
    try {
      value = convertAnswer(answer, call.convert);
    } catch (error) {
      call.reject(error);
      return;
    }
    call.resolve(value);
  }

  const NOTHING = "";

  function text(value, message) {
    if (typeof value !== "string" || value === "") throw invalid(message);
    if (value.length > MAX_TEXT) {
      throw invalid(`a text of ${value.length} characters is too long: at most ${MAX_TEXT} are allowed`);
    }
    return value;
  }

  function isBytesLike(value) {
    return typeof value === "string" || core.isAnyArrayBuffer(value) || ArrayBufferIsView(value);
  }

  // Strings are accepted wherever bytes are.
  function bytesLike(value, message) {
    if (!isBytesLike(value)) throw invalid(`${message}, as a Uint8Array, an ArrayBuffer or a string`);
    return value;
  }

  // A view of the bytes.
  function bytes(value, message) {
    if (typeof value === "string") return core.encode(value);
    if (core.isTypedArray(value)) {
      return new Uint8Array(
        TypedArrayPrototypeGetBuffer(value),
        TypedArrayPrototypeGetByteOffset(value),
        TypedArrayPrototypeGetByteLength(value),
      );
    }
    if (core.isDataView(value)) {
      return new Uint8Array(
        DataViewPrototypeGetBuffer(value),
        DataViewPrototypeGetByteOffset(value),
        DataViewPrototypeGetByteLength(value),
      );
    }
    return new Uint8Array(bytesLike(value, message));
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
    return MathCeil(value);
  }

  // Operations and their parts, without a prototype: what they do not name, they do not have.
  const operation = (name, parts) => ({ __proto__: null, [name]: parts });
  const inBucket = (bucket) => ({ __proto__: null, bucket });
  const ofKey = (bucket, key) => ({ __proto__: null, bucket, key: text(key, "key is required") });
  const ofName = (bucket, name) => ({ __proto__: null, bucket, name: text(name, "name is required") });

  const value = (_result, payload) => payload;
  const nothing = () => undefined;

  function mapped(array, convert) {
    const all = [];
    for (let index = 0; index < array.length; index++) push(all, convert(array[index]));
    return all;
  }

  function objectInfo(info) {
    if (info.description === null) delete info.description;
    return info;
  }

  function keyValue(call, bucket) {
    const remove = (key) => call(operation("kvDelete", ofKey(bucket, key)), NOTHING, nothing);
    return {
      __proto__: null,
      get: (key) => call(operation("kvGet", ofKey(bucket, key)), NOTHING, value),
      set(key, data) {
        const required = "key and value are required";
        const parts = { __proto__: null, bucket, key: text(key, required) };
        return call(operation("kvSet", parts), bytesLike(data, required), nothing);
      },
      delete: remove,
      del: remove,
      keys: () => call(operation("kvKeys", inBucket(bucket)), NOTHING, (result) => result.keys),
    };
  }

  function objectStore(call, bucket) {
    const remove = (name) => call(operation("objectDelete", ofName(bucket, name)), NOTHING, nothing);
    return {
      __proto__: null,
      get: (name) => call(operation("objectGet", ofName(bucket, name)), NOTHING, value),
      put(name, data) {
        const required = "name and value are required";
        const parts = { __proto__: null, bucket, name: text(name, required) };
        return call(operation("objectPut", parts), bytesLike(data, required), (result) => objectInfo(result.object));
      },
      delete: remove,
      del: remove,
      list: () =>
        call(operation("objectList", inBucket(bucket)), NOTHING, (result) => mapped(result.objects, objectInfo)),
    };
  }

  function messages(result, payload) {
    let offset = 0;
    return mapped(result.messages, (info) => {
      const data = TypedArrayPrototypeSlice(payload, offset, offset + info.len);
      offset += info.len;
      return new Message(info.subject, undefined, info.headers, data);
    });
  }

  // `receive` turns a reply into what the form hands out: bytes in the classic one, a message in modules.
  function messaging(call, receive) {
    const required = "subject and payload are required";
    return {
      __proto__: null,
      publish(subject, payload, options) {
        const parts = { __proto__: null, subject: text(subject, required), headers: headerPairs(options?.headers) };
        return call(operation("publish", parts), bytesLike(payload, required), nothing);
      },
      request(subject, payload, options) {
        const parts = {
          __proto__: null,
          subject: text(subject, required),
          headers: headerPairs(options?.headers),
          timeoutMs: milliseconds(options?.timeout),
        };
        return call(operation("request", parts), bytesLike(payload, required), (result, data) =>
          receive(messages(result, data)[0]),
        );
      },
      requestMany(subject, payload, options) {
        const max = options?.max ?? null;
        if (max !== null && !(NumberIsInteger(max) && max > 0 && max <= 0xffffffff)) {
          throw invalid("max must be a positive integer");
        }
        const parts = {
          __proto__: null,
          subject: text(subject, required),
          headers: headerPairs(options?.headers),
          timeoutMs: milliseconds(options?.timeout),
          maxReplies: max,
        };
        return call(operation("requestMany", parts), bytesLike(payload, required), (result, data) =>
          mapped(messages(result, data), receive),
        );
      },
    };
  }

  // `Content-Type`, as Go's HTTP library spelled header names for the functions written against it.
  function canonical(name) {
    let spelled = "";
    for (let index = 0; index < name.length; index++) {
      const first = index === 0 || name[index - 1] === "-";
      spelled += first && name[index] >= "a" && name[index] <= "z" ? StringPrototypeToUpperCase(name[index]) : name[index];
    }
    return spelled;
  }

  function httpResponse(result, payload) {
    const headers = {};
    const seen = { __proto__: null };
    const pairs = result.http.headers;
    for (let index = 0; index < pairs.length; index++) {
      const key = canonical(pairs[index][0]);
      seen[key] = key in seen ? `${seen[key]}, ${pairs[index][1]}` : pairs[index][1];
      define(headers, key, seen[key]);
    }
    const response = { status: result.http.status, headers, body: payload };
    if (TypedArrayPrototypeGetByteLength(payload) > 0) define(response, "response", core.decode(payload));
    return response;
  }

  // Every method takes (url, body?, options?) or (url, options?).
  function http(call) {
    const request = (method) => (url, ...rest) => {
      const first = rest.length > 0 ? rest[0] : undefined;
      const hasBody = rest.length > 1 || first === undefined || first === null || isBytesLike(first);
      const body = hasBody ? first : undefined;
      const options = hasBody ? (rest.length > 1 ? rest[1] : undefined) : first;
      const parts = {
        __proto__: null,
        method,
        url: text(url === undefined ? url : String(url), "url is required"),
        headers: headerPairs(options?.headers),
        timeoutMs: milliseconds(options?.timeout),
      };
      const payload = body === undefined || body === null ? NOTHING : bytesLike(body, "body must be given");
      return call(operation("http", parts), payload, httpResponse);
    };
    const remove = request("DELETE");
    return {
      __proto__: null,
      get: request("GET"),
      post: request("POST"),
      put: request("PUT"),
      patch: request("PATCH"),
      delete: remove,
      del: remove,
      head: request("HEAD"),
    };
  }

  // The methods as properties of an ordinary object, which cannot be changed.
  function frozen(methods, wrap) {
    const object = {};
    const names = ObjectKeys(methods);
    for (let index = 0; index < names.length; index++) define(object, names[index], wrap(methods[names[index]]));
    return ObjectFreeze(object);
  }

  const plain = (method) => method;

  // Wrong arguments reject, too, in the promise-based API.
  const promised = (method) =>
    (...args) => {
      try {
        return ReflectApply(method, undefined, args);
      } catch (error) {
        return new Promise((_resolve, reject) => reject(error));
      }
    };

  function requiredBucket(open) {
    return (bucket) => {
      if (bucket === undefined || bucket === null) throw invalid("bucket name is required");
      return frozen(open(callSync, bucketName(bucket)), plain);
    };
  }

  function installClassic() {
    const data = (message) => message.data;
    const objects = frozen(objectStore(callSync, null), plain);
    const hostServices = ObjectFreeze({
      kv: frozen(keyValue(callSync, null), plain),
      objectStore: objects,
      objectstore: objects,
      messaging: frozen(messaging(callSync, data), plain),
      http: frozen(http(callSync), plain),
    });
    const globals = {
      __proto__: null,
      hostServices,
      kv: requiredBucket(keyValue),
      objectStore: requiredBucket(objectStore),
      objectstore: requiredBucket(objectStore),
      messaging: hostServices.messaging,
      http: hostServices.http,
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
  }

  const nats = messaging(callAsync, (message) => message);
  const moduleServices = {
    __proto__: null,
    kv: (bucket) => frozen(keyValue(callAsync, bucketName(bucket)), promised),
    objects: (bucket) => frozen(objectStore(callAsync, bucketName(bucket)), promised),
    nats: ObjectFreeze({
      publish: promised(nats.publish),
      request: promised(nats.request),
      async *requestMany(subject, payload, options) {
        const replies = await nats.requestMany(subject, payload, options);
        for (let index = 0; index < replies.length; index++) yield replies[index];
      },
    }),
    http: frozen(http(callAsync), promised),
  };

  // Only `vars` is a function's own; the rest comes made with the snapshot, so that a start need not make it.
  function moduleEnv(vars) {
    const { kv, objects, nats, http } = moduleServices;
    return ObjectFreeze({ vars: ObjectFreeze(vars), kv, objects, nats, http });
  }

  installClassic();
  internals.bytes = bytes;
  internals.moduleEnv = moduleEnv;
  internals.settleHostCall = settleHostCall;
})(globalThis);
