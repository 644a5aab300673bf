// Nothing of the engine's own plumbing, and no shared memory, is left on the global.
// @reply ["undefined","undefined","undefined","undefined","undefined"]
() => [typeof Deno, typeof __bootstrap, typeof __nex, typeof SharedArrayBuffer, typeof Atomics];
