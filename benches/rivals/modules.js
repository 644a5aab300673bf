// What the 300 KB function is made of, over and over with other names and numbers, as bundlers write the modules of an
// application one after the other. `__word__` and `__number__` are different at each place; `__name__` is the module's.
// ---
define("__name__", (exports, load) => {
  const rates = {
    __word__: { base: __number__, step: 0.__number__, unit: "__word__" },
    __word__: { base: __number__, step: 0.__number__, unit: "__word__" },
    __word__: { base: __number__, step: 0.__number__, unit: "__word__" },
    __word__: { base: __number__, step: 0.__number__, unit: "__word__" },
    __word__: { base: __number__, step: 0.__number__, unit: "__word__" },
  };
  const fallback = { base: __number__, step: 0, unit: "__word__" };

  function rateOf(kind) {
    return Object.hasOwn(rates, kind) ? rates[kind] : fallback;
  }

  function price(kind, quantity, options = {}) {
    const { base, step, unit } = rateOf(kind);
    const discount = Math.min(quantity * step, options.limit ?? 0.5);
    const net = base * quantity * (1 - discount);
    const tax = options.exempt ? 0 : net * 0.19;
    return { net, tax, gross: net + tax, unit };
  }

  function total(lines) {
    return lines.reduce((sum, line) => sum + price(line.kind, line.quantity, line.options).gross, 0);
  }

  exports.price = price;
  exports.total = total;
  exports.check = (text) => total([{ kind: text, quantity: text.length }]) > 0;
});
// ---
define("__name__", (exports, load) => {
  const pattern = /^(?<scheme>__word__|__word__|__word__):(?<id>[a-z0-9-]{1,__number__})(?:\?(?<query>.*))?$/u;

  class Registry {
    #items = new Map();
    #listeners = new Set();

    constructor(entries = []) {
      for (const [key, value] of entries) this.set(key, value);
    }

    get size() {
      return this.#items.size;
    }

    on(listener) {
      this.#listeners.add(listener);
      return () => this.#listeners.delete(listener);
    }

    set(key, value) {
      const before = this.#items.get(key);
      if (Object.is(before, value)) return this;
      this.#items.set(key, value);
      for (const listener of this.#listeners) listener({ key, before, value });
      return this;
    }

    get(key, otherwise = "__word__") {
      return this.#items.has(key) ? this.#items.get(key) : otherwise;
    }

    parse(text) {
      const match = pattern.exec(text);
      if (!match) return { ok: false, reason: "__word__ __word__ expected" };
      const query = Object.fromEntries(new URLSearchParams(match.groups.query ?? ""));
      return { ok: true, scheme: match.groups.scheme, id: match.groups.id, query };
    }
  }

  const instance = new Registry([["__word__", __number__], ["__word__", __number__]]);
  exports.instance = instance;
  exports.check = (text) => instance.get("__word__", text.length) !== undefined && !instance.parse(text).ok;
});
// ---
define("__name__", (exports, load) => {
  const states = ["__word__", "__word__", "__word__", "__word__", "done"];

  function next(state, event) {
    switch (state) {
      case 0:
        return event === "__word__" ? 1 : event === "__word__" ? 2 : 0;
      case 1:
        return event.length > __number__ ? 3 : 2;
      case 2:
        if (event.startsWith("__word__")) return 4;
        return event.endsWith("__word__") ? 1 : 3;
      case 3:
        return event === "__word__" || event === "__word__" ? 0 : 4;
      default:
        throw new RangeError(`no state ${state} for ${event}: expected one of ${states.join(", ")}`);
    }
  }

  function run(events) {
    let state = 0;
    const trace = [];
    for (const event of events) {
      if (states[state] === "done") break;
      state = next(state, event);
      trace.push({ event, state: states[state] });
    }
    return { state: states[state], trace };
  }

  exports.run = run;
  exports.check = (text) => run(text.split(" ")).trace.length > 0;
});
// ---
define("__name__", (exports, load) => {
  const messages = {
    __word__: (values) => `The __word__ of ${values.name} takes ${values.count} __word__s.`,
    __word__: (values) => `${values.name}: __word__ ${values.count} of __number__, __word__ ${values.count + __number__}.`,
    __word__: ({ name, count }) => (count === 1 ? `One __word__ in ${name}` : `${count} __word__s in ${name}`),
  };

  const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  const escape = (text) => String(text).replace(/[&<>"']/g, (character) => escapes[character]);

  function format(key, values) {
    const message = messages[key];
    if (!message) throw new Error(`no message ${key}, there are ${Object.keys(messages).join(", ")}`);
    return escape(message(values));
  }

  function table(rows, columns = ["__word__", "__word__", "__word__"]) {
    const widths = columns.map((column) => Math.max(column.length, ...rows.map((row) => String(row[column]).length)));
    const line = (cells) => cells.map((cell, index) => String(cell).padEnd(widths[index])).join(" | ");
    return [line(columns), ...rows.map((row) => line(columns.map((column) => row[column])))].join("\n");
  }

  exports.format = format;
  exports.table = table;
  exports.check = (text) => format(Object.keys(messages)[0], { name: text, count: __number__ }).length > text.length;
});
// ---
define("__name__", (exports, load) => {
  const DAY = 86_400_000;
  const holidays = new Set(["__word__-__number__", "__word__-__number__", "__word__-__number__"]);

  const startOfDay = (time) => time - (time % DAY);
  const addDays = (time, days) => startOfDay(time) + days * DAY;

  function* range(from, to, step = DAY) {
    for (let time = from; time < to; time += step) yield time;
  }

  function workdays(from, to) {
    let count = 0;
    for (const time of range(startOfDay(from), to)) {
      const date = new Date(time);
      const weekday = date.getUTCDay();
      if (weekday !== 0 && weekday !== 6 && !holidays.has(`__word__-${date.getUTCDate()}`)) count += 1;
    }
    return count;
  }

  async function retry(work, { attempts = 3, pause = __number__, factor = 2 } = {}) {
    let wait = pause;
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await work(attempt);
      } catch (error) {
        if (attempt >= attempts) throw new Error(`gave up after ${attempt} attempts`, { cause: error });
        await new Promise((resolve) => setTimeout(resolve, wait));
        wait *= factor;
      }
    }
  }

  exports.workdays = workdays;
  exports.retry = retry;
  exports.check = (text) => workdays(addDays(0, text.length), addDays(0, text.length + 14)) > 0;
});
