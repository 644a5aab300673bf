// `console` for functions: formats its arguments and hands each line, with its level, to the host's log sink.
// Becomes deno_web's console when the web platform arrives; the levels and the sink stay.
((window) => {
  const { core, primordials } = window.__bootstrap;
  const { ops } = core;
  const {
    ArrayPrototypeJoin,
    ArrayPrototypeMap,
    ArrayPrototypePush,
    ErrorPrototypeToString,
    JSONStringify,
    ObjectKeys,
    SafeSet,
    String,
    SymbolPrototypeToString,
  } = primordials;

  const MAX_DEPTH = 4;
  const MAX_ITEMS = 100;

  // Names a value for people, as a developer's console does: nested to a limited depth, cycles marked, getters run.
  function inspect(value, depth, seen) {
    switch (typeof value) {
      case "string":
        return depth === 0 ? value : JSONStringify(value);
      case "bigint":
        return `${value}n`;
      case "symbol":
        return SymbolPrototypeToString(value);
      case "function":
        return `[Function: ${value.name || "anonymous"}]`;
      case "object":
        return value === null ? "null" : inspectObject(value, depth, seen);
      default:
        return String(value);
    }
  }

  function inspectObject(value, depth, seen) {
    if (core.isNativeError(value)) return value.stack ?? ErrorPrototypeToString(value);
    if (core.isDate(value)) return String(value);
    if (core.isRegExp(value)) return String(value);
    if (seen.has(value)) return "[Circular]";
    const name = value.constructor?.name;
    if (depth >= MAX_DEPTH) return `[${name ?? "Object"}]`;
    seen.add(value);
    const item = (each) => inspect(each, depth + 1, seen);
    let text;
    if (Array.isArray(value)) {
      text = `[${list(value, value.length, item)}]`;
    } else if (core.isTypedArray(value)) {
      text = `${name}(${value.length}) [${list(value, value.length, item)}]`;
    } else if (core.isMap(value)) {
      text = `Map(${value.size}) {${list([...value], value.size, ([key, each]) => `${item(key)} => ${item(each)}`)}}`;
    } else if (core.isSet(value)) {
      text = `Set(${value.size}) {${list([...value], value.size, item)}}`;
    } else {
      const keys = ObjectKeys(value);
      const body = list(keys, keys.length, (key) => `${key}: ${item(value[key])}`);
      text = `${name && name !== "Object" ? `${name} ` : ""}{${body}}`;
    }
    seen.delete(value);
    return text;
  }

  function list(values, length, format) {
    if (length === 0) return "";
    const shown = ArrayPrototypeMap([...values.slice(0, MAX_ITEMS)], format);
    if (length > MAX_ITEMS) ArrayPrototypePush(shown, `\u2026 ${length - MAX_ITEMS} more`);
    return ` ${ArrayPrototypeJoin(shown, ", ")} `;
  }

  function format(args) {
    return ArrayPrototypeJoin(
      ArrayPrototypeMap(args, (value) => {
        try {
          return inspect(value, 0, new SafeSet());
        } catch (error) {
          return `[not printable: ${error}]`;
        }
      }),
      " ",
    );
  }

  const levels = { trace: 0, debug: 1, log: 2, info: 2, dir: 2, warn: 3, error: 4 };
  const console = {};
  for (const method of ObjectKeys(levels)) {
    console[method] = (...args) => {
      ops.op_nex_log(levels[method], format(args));
    };
  }
  console.assert = (condition, ...args) => {
    if (!condition) console.error("Assertion failed:", ...args);
  };
  window.console = console;
})(globalThis);
