// A NATS message as a function gets it, the headers of messages, replies and requests, and what the host's JavaScript
// needs to handle values without touching what a function may have replaced.
"use strict";
((window) => {
  const { core, internals, primordials } = window.__bootstrap;
  const { ops } = core;
  const {
    ArrayIsArray,
    JSONParse,
    JSONStringify,
    MapIteratorPrototypeNext,
    MapPrototypeEntries,
    ObjectDefineProperty,
    ObjectGetPrototypeOf,
    ObjectHasOwn,
    ObjectKeys,
    ObjectPrototype,
    RegExpPrototypeExec,
    String,
    SymbolIterator,
    TypeError,
  } = primordials;

  // Characters of all headers together, names included.
  const MAX_HEADERS = 65_536;

  const NAME = /^[!-9;-~]+$/;
  const LINE_BREAK = /[\r\n\0]/;

  // Sets an own property, whatever setters the prototypes have.
  function define(object, key, value) {
    return ObjectDefineProperty(object, key, {
      __proto__: null,
      value,
      writable: true,
      enumerable: true,
      configurable: true,
    });
  }

  function push(array, value) {
    define(array, array.length, value);
  }

  function invalid(message) {
    return define(new TypeError(message), "code", "INVALID_ARGUMENT");
  }

  // Whether it is an object as a literal makes one.
  function isPlain(object) {
    const prototype = ObjectGetPrototypeOf(object);
    return prototype === ObjectPrototype || prototype === null;
  }

  // Message headers: names are case-sensitive and may repeat, as in NATS.
  class MessageHeaders {
    #pairs;
    constructor(pairs) {
      this.#pairs = pairs;
    }
    get(name) {
      const pairs = this.#pairs;
      for (let index = 0; index < pairs.length; index++) {
        if (pairs[index][0] === name) return pairs[index][1];
      }
      return null;
    }
    getAll(name) {
      const pairs = this.#pairs;
      const lines = [];
      for (let index = 0; index < pairs.length; index++) {
        if (pairs[index][0] === name) push(lines, pairs[index][1]);
      }
      return lines;
    }
    has(name) {
      return this.get(name) !== null;
    }
    keys() {
      const pairs = this.#pairs;
      const seen = { __proto__: null };
      const names = [];
      for (let index = 0; index < pairs.length; index++) {
        const name = pairs[index][0];
        if (seen[name]) continue;
        seen[name] = true;
        push(names, name);
      }
      return names;
    }
    *[SymbolIterator]() {
      const pairs = this.#pairs;
      for (let index = 0; index < pairs.length; index++) yield [pairs[index][0], pairs[index][1]];
    }
    toJSON() {
      const pairs = this.#pairs;
      const object = {};
      for (let index = 0; index < pairs.length; index++) {
        const name = pairs[index][0];
        const line = pairs[index][1];
        define(object, name, ObjectHasOwn(object, name) ? `${object[name]}, ${line}` : line);
      }
      return object;
    }
    static pairs(value) {
      return #pairs in value ? value.#pairs : undefined;
    }
  }
  const pairsOf = MessageHeaders.pairs;
  delete MessageHeaders.pairs;

  // Its bytes are a view of the payload that came with it.
  class Message {
    // Declared, so that they are its own: a setter on `Object.prototype` would swallow them.
    subject;
    reply;
    data;
    #pairs;
    #headers = undefined;
    constructor(subject, reply, pairs, data) {
      this.subject = subject;
      this.reply = reply;
      this.data = data;
      this.#pairs = pairs;
    }
    get headers() {
      return (this.#headers ??= new MessageHeaders(this.#pairs ?? []));
    }
    text() {
      return core.decode(this.data);
    }
    json() {
      return JSONParse(core.decode(this.data));
    }
  }

  // Pairs of strings from an object, a Map, an array of pairs or anything else that iterates over pairs; a value that
  // is an array gives one pair an element. Line breaks would let a value forge further headers.
  function headerPairs(headers) {
    const pairs = [];
    if (headers === undefined || headers === null) return pairs;
    if (typeof headers !== "object" && typeof headers !== "function") throw new TypeError("headers must be an object");
    let room = MAX_HEADERS;
    const add = (name, values) => {
      if (typeof name !== "string" || name.length > MAX_HEADERS || RegExpPrototypeExec(NAME, name) === null) {
        const shown = typeof name === "string" ? JSONStringify(ops.op_nex_head(name, 100)) : typeof name;
        throw invalid(`invalid header name: ${shown}`);
      }
      const lines = ArrayIsArray(values) ? values : [values];
      for (let index = 0; index < lines.length; index++) {
        const line = String(lines[index]);
        room -= name.length + line.length;
        if (room < 0) throw invalid(`the headers have more than ${MAX_HEADERS} characters`);
        if (RegExpPrototypeExec(LINE_BREAK, line) !== null) {
          throw invalid(`invalid value of header ${name}: it contains a line break`);
        }
        push(pairs, [name, line]);
      }
    };
    const known = pairsOf(headers) ?? (ArrayIsArray(headers) ? headers : undefined);
    if (known !== undefined) {
      for (let index = 0; index < known.length; index++) add(known[index][0], known[index][1]);
    } else if (core.isMap(headers)) {
      const entries = MapPrototypeEntries(headers);
      for (let next = MapIteratorPrototypeNext(entries); !next.done; next = MapIteratorPrototypeNext(entries)) {
        add(next.value[0], next.value[1]);
      }
    } else if (isPlain(headers) ? !ObjectHasOwn(headers, SymbolIterator) : headers[SymbolIterator] === undefined) {
      const names = ObjectKeys(headers);
      for (let index = 0; index < names.length; index++) add(names[index], headers[names[index]]);
    } else {
      for (const pair of headers) add(pair[0], pair[1]);
    }
    return pairs;
  }

  internals.Message = Message;
  internals.define = define;
  internals.headerPairs = headerPairs;
  internals.invalid = invalid;
  internals.push = push;
})(globalThis);
