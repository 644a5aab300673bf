// A result with a method `then` is awaited, whatever that does.
// @call resolves
// @reply done
// @call throws
// @error exception Error: then threw
// @call rejects
// @error exception TypeError: no
// @call nests
// @reply inner
// @call getter
// @error exception Error: getter threw
// @call never
// @error exception
// @error-contains can never settle
(subject, payload) =>
  ({
    resolves: () => ({ then: (resolve) => (resolve('done'), resolve('again')) }),
    throws: () => ({ then() { throw new Error('then threw') } }),
    rejects: () => ({ then: (_, reject) => reject(new TypeError('no')) }),
    nests: () => ({ then: (resolve) => resolve({ then: (resolve) => resolve('inner') }) }),
    getter: () => ({ get then() { throw new Error('getter threw') } }),
    never: () => ({ then() {} }),
  })[String.fromCharCode(...payload)]();
