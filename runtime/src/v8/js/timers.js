// `setTimeout` and `setInterval`, with numeric ids as on the web. The host counts them: what a function does to the
// prototypes here changes nothing about its limit.
"use strict";
((window) => {
  const { core, internals, primordials } = window.__bootstrap;
  const { ops } = core;
  const { MapPrototypeDelete, MapPrototypeGet, MapPrototypeSet, ReflectApply, SafeMap, TypeError } = primordials;

  const timers = new SafeMap();
  let lastTimer = 0;

  function start(callback, delay, args, repeat) {
    if (typeof callback !== "function") throw new TypeError("the timer's callback must be a function");
    // As browsers count it: a whole number of milliseconds in 32 bits, and at least one.
    let milliseconds = delay | 0;
    if (milliseconds < 1) milliseconds = 1;
    ops.op_nex_timer_begin();
    const id = ++lastTimer;
    const run = () => {
      if (!repeat) end(id);
      ReflectApply(callback, undefined, args);
    };
    MapPrototypeSet(timers, id, core.createTimer(run, milliseconds, undefined, repeat, true));
    return id;
  }

  // Whether there was such a timer.
  function end(id) {
    if (!MapPrototypeDelete(timers, id)) return;
    ops.op_nex_timer_end();
  }

  function clear(id) {
    const timer = MapPrototypeGet(timers, id);
    if (timer === undefined) return;
    end(id);
    core.cancelTimer(timer);
  }

  internals.timers = {
    __proto__: null,
    clearInterval(id) {
      clear(id);
    },
    clearTimeout(id) {
      clear(id);
    },
    setInterval(callback, delay, ...args) {
      return start(callback, delay, args, true);
    },
    setTimeout(callback, delay, ...args) {
      return start(callback, delay, args, false);
    },
  };
})(globalThis);
