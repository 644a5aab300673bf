// `AbortController` and `AbortSignal`, as far as `ctx.signal` and functions' own cancellation need them.
((window) => {
  const abort = Symbol("abort");

  class AbortSignal {
    #aborted = false;
    #reason = undefined;
    #listeners = new Set();
    onabort = null;

    static abort(reason) {
      const signal = new AbortSignal();
      signal[abort](reason);
      return signal;
    }
    get aborted() {
      return this.#aborted;
    }
    get reason() {
      return this.#reason;
    }
    throwIfAborted() {
      if (this.#aborted) throw this.#reason;
    }
    addEventListener(type, listener) {
      if (type === "abort") this.#listeners.add(listener);
    }
    removeEventListener(type, listener) {
      if (type === "abort") this.#listeners.delete(listener);
    }
    [abort](reason) {
      if (this.#aborted) return;
      this.#aborted = true;
      this.#reason = reason ?? Object.assign(new Error("the operation was aborted"), { name: "AbortError" });
      const event = { type: "abort", target: this };
      for (const listener of [this.onabort, ...this.#listeners]) {
        try {
          if (typeof listener === "function") listener.call(this, event);
          else listener?.handleEvent?.(event);
        } catch (error) {
          console.error(error);
        }
      }
    }
  }

  class AbortController {
    #signal = new AbortSignal();
    get signal() {
      return this.#signal;
    }
    abort(reason) {
      this.#signal[abort](reason);
    }
  }

  Object.assign(window, { AbortSignal, AbortController });
  for (const name of ["AbortSignal", "AbortController"]) {
    Object.defineProperty(window, name, { enumerable: false });
  }
})(globalThis);
