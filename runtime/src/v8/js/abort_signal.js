// `AbortController` and `AbortSignal`, as far as `ctx.signal` and functions' own cancellation need them.
"use strict";
((window) => {
  const { internals, primordials } = window.__bootstrap;
  const { Error, ObjectDefineProperty, ReflectApply, SafeSet, SetPrototypeForEach, Symbol } = primordials;
  const abort = Symbol("abort");

  function named(error, name) {
    return ObjectDefineProperty(error, "name", {
      __proto__: null,
      value: name,
      writable: true,
      enumerable: false,
      configurable: true,
    });
  }

  class AbortSignal {
    #aborted = false;
    #reason = undefined;
    #listeners = new SafeSet();
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
      this.#reason = reason ?? named(new Error("the operation was aborted"), "AbortError");
      const event = { type: "abort", target: this };
      const notify = (listener) => {
        try {
          if (typeof listener === "function") ReflectApply(listener, this, [event]);
          else listener?.handleEvent?.(event);
        } catch (error) {
          internals.logError("Uncaught", error);
        }
      };
      notify(this.onabort);
      SetPrototypeForEach(this.#listeners, notify);
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
    static abort(controller, reason) {
      controller.#signal[abort](reason);
    }
  }
  const abortWith = AbortController.abort;
  delete AbortController.abort;

  const globals = { __proto__: null, AbortController, AbortSignal };
  for (const name in globals) {
    ObjectDefineProperty(window, name, {
      __proto__: null,
      value: globals[name],
      writable: true,
      enumerable: false,
      configurable: true,
    });
  }
  internals.newAbortController = () => new AbortController();
  internals.signalOf = (controller) => controller.signal;
  internals.abortWith = abortWith;
  internals.named = named;
})(globalThis);
