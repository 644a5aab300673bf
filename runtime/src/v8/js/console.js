// `console` for functions: formats its arguments and hands each line, with its level, to the host's log sink.
//
// Values come from the function and may be hostile: nothing of theirs is run except the `stack` of an error, what is
// shown of them is bounded, and a line that the log limit will drop is not formatted at all.
"use strict";
((window) => {
  const { core, internals, primordials } = window.__bootstrap;
  const { ops } = core;
  const {
    ArrayIsArray,
    DatePrototypeToISOString,
    JSONStringify,
    MapIteratorPrototypeNext,
    MapPrototypeEntries,
    MapPrototypeGetSize,
    ObjectGetOwnPropertyDescriptor,
    ObjectGetPrototypeOf,
    ObjectHasOwn,
    ObjectKeys,
    ObjectPrototype,
    RegExpPrototypeToString,
    SafeSet,
    SetIteratorPrototypeNext,
    SetPrototypeGetSize,
    SetPrototypeValues,
    String,
    SymbolPrototypeGetDescription,
    TypedArrayPrototypeGetLength,
    TypedArrayPrototypeGetSymbolToStringTag,
  } = primordials;

  const MAX_DEPTH = 4;
  const MAX_ITEMS = 100;
  // Units; a little more than the characters of a log line may have, so that the host sees that there was more.
  const MAX_TEXT = 20_001;

  // The value of an own property that is no getter.
  function data(object, key) {
    const descriptor = ObjectGetOwnPropertyDescriptor(object, key);
    return descriptor !== undefined && ObjectHasOwn(descriptor, "value") ? descriptor.value : undefined;
  }

  function head(text) {
    return text.length > MAX_TEXT ? ops.op_nex_head(text, MAX_TEXT) : text;
  }

  function nameOf(func) {
    const name = data(func, "name");
    return typeof name === "string" ? head(name) : "";
  }

  // The name of an object's class, from the nearest `constructor` on its prototypes.
  function className(object) {
    let prototype = object;
    for (let depth = 0; prototype !== null && depth < MAX_ITEMS && !core.isProxy(prototype); depth++) {
      const constructor = data(prototype, "constructor");
      if (typeof constructor === "function" && !core.isProxy(constructor)) return nameOf(constructor);
      prototype = ObjectGetPrototypeOf(prototype);
    }
    return "";
  }

  // Names values for people, as a developer's console does: nested to a limited depth, cycles marked, getters named. Stops
  // when there is more than a log line may have.
  class Printer {
    text = "";
    #above = new SafeSet();

    get full() {
      return this.text.length >= MAX_TEXT;
    }

    value(value, depth) {
      if (this.full) return;
      switch (typeof value) {
        case "string":
          this.text += depth === 0 ? head(value) : JSONStringify(head(value));
          break;
        case "bigint":
          // Beyond this many bits it takes long to write them out.
          this.text += value < 2n ** 1024n && value > -(2n ** 1024n) ? `${value}n` : "[BigInt]";
          break;
        case "symbol":
          this.text += `Symbol(${head(SymbolPrototypeGetDescription(value) ?? "")})`;
          break;
        case "function":
          this.text += core.isProxy(value) ? "[Proxy]" : `[Function: ${nameOf(value) || "anonymous"}]`;
          break;
        case "object":
          if (value === null) this.text += "null";
          else this.object(value, depth);
          break;
        default:
          this.text += String(value);
      }
    }

    object(value, depth) {
      if (core.isProxy(value)) this.text += "[Proxy]";
      else if (core.isNativeError(value)) this.error(value);
      else if (core.isDate(value)) this.text += date(value);
      else if (core.isRegExp(value)) this.text += head(RegExpPrototypeToString(value));
      else if (this.#above.has(value)) this.text += "[Circular]";
      else if (depth >= MAX_DEPTH) this.text += `[${className(value) || "Object"}]`;
      else {
        this.#above.add(value);
        this.items(value, depth + 1);
        this.#above.delete(value);
      }
    }

    error(value) {
      const stack = value.stack;
      if (typeof stack === "string") {
        this.text += head(stack);
        return;
      }
      const message = data(value, "message");
      this.text += `${className(value) || "Error"}${typeof message === "string" ? `: ${head(message)}` : ""}`;
    }

    items(value, depth) {
      if (ArrayIsArray(value)) {
        this.list("[", value.length, "]", (index) => this.property(value, index, depth));
      } else if (core.isTypedArray(value)) {
        const length = TypedArrayPrototypeGetLength(value);
        this.text += `${TypedArrayPrototypeGetSymbolToStringTag(value)}(${length}) `;
        this.list("[", length, "]", (index) => this.value(value[index], depth));
      } else if (core.isMap(value)) {
        const entries = MapPrototypeEntries(value);
        const size = MapPrototypeGetSize(value);
        this.text += `Map(${size}) `;
        this.list("{", size, "}", () => {
          const entry = MapIteratorPrototypeNext(entries).value;
          this.value(entry[0], depth);
          this.text += " => ";
          this.value(entry[1], depth);
        });
      } else if (core.isSet(value)) {
        const values = SetPrototypeValues(value);
        const size = SetPrototypeGetSize(value);
        this.text += `Set(${size}) `;
        this.list("{", size, "}", () => this.value(SetIteratorPrototypeNext(values).value, depth));
      } else {
        const name = ObjectGetPrototypeOf(value) === ObjectPrototype ? "" : className(value);
        if (name !== "" && name !== "Object") this.text += `${name} `;
        const keys = ObjectKeys(value);
        this.list("{", keys.length, "}", (index) => {
          this.text += `${head(keys[index])}: `;
          this.property(value, keys[index], depth);
        });
      }
    }

    property(object, key, depth) {
      const descriptor = ObjectGetOwnPropertyDescriptor(object, key);
      if (descriptor === undefined) this.text += "<empty>";
      else if (ObjectHasOwn(descriptor, "value")) this.value(descriptor.value, depth);
      else this.text += "[Getter]";
    }

    list(open, length, close, print) {
      this.text += open;
      for (let index = 0; index < length && !this.full; index++) {
        this.text += index === 0 ? " " : ", ";
        if (index === MAX_ITEMS) {
          this.text += `\u2026 ${length - MAX_ITEMS} more`;
          break;
        }
        print(index);
      }
      this.text += length === 0 ? close : ` ${close}`;
    }
  }

  function date(value) {
    try {
      return DatePrototypeToISOString(value);
    } catch {
      return "Invalid Date";
    }
  }

  // What cannot be shown is no reason for the function to fail.
  function format(args) {
    if (args.length === 1 && typeof args[0] === "string") return args[0];
    const printer = new Printer();
    for (let index = 0; index < args.length && !printer.full; index++) {
      if (index > 0) printer.text += " ";
      try {
        printer.value(args[index], 0);
      } catch (error) {
        printer.text += `[not printable: ${reason(error)}]`;
      }
    }
    return printer.text;
  }

  function reason(error) {
    try {
      return core.isNativeError(error) && !core.isProxy(error)
        ? `${className(error)}: ${head(String(data(error, "message")))}`
        : typeof error;
    } catch {
      return "an error that is not, either";
    }
  }

  function log(level, args) {
    if (ops.op_nex_log_open()) ops.op_nex_log(level, format(args));
  }

  const ERROR = 4;
  const console = {
    trace(...args) {
      log(0, args);
    },
    debug(...args) {
      log(1, args);
    },
    log(...args) {
      log(2, args);
    },
    info(...args) {
      log(2, args);
    },
    dir(value) {
      log(2, [value]);
    },
    warn(...args) {
      log(3, args);
    },
    error(...args) {
      log(ERROR, args);
    },
    assert(condition, ...args) {
      if (condition) return;
      const all = ["Assertion failed:"];
      for (let index = 0; index < args.length; index++) all[index + 1] = args[index];
      log(ERROR, all);
    },
  };
  window.console = console;

  // Errors that no code of the function caught go to its log, within its limit, and nowhere else: its calls go on.
  core.setReportExceptionCallback((error) => internals.logError("Uncaught", error));

  internals.logError = (prefix, error) => log(ERROR, [prefix, error]);
})(globalThis);
