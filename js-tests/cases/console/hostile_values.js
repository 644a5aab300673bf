// What is logged is not run: getters are named, proxies are not asked. A value that cannot be shown is no reason for the
// call to fail.
// @log INFO { trap: [Getter], settable: [Getter], proxy: [Proxy], Symbol: 1 }
// @log INFO { a: 1 } Named { b: 2 } [ <empty>, <empty>, 3 ] Invalid Date [Proxy]
// @log INFO [not printable: Error: no]
// @log-contains INFO Error: named
// @reply fine
() => {
  const no = () => {
    throw new Error('no');
  };
  const handler = new Proxy({}, { get: no });
  console.log({
    get trap() {
      return no();
    },
    set settable(value) {},
    proxy: new Proxy({}, handler),
    Symbol: 1,
  });
  class Named {
    b = 2;
  }
  const named = new Named();
  Object.defineProperty(Object.prototype, 'constructor', { get: no, configurable: true });
  console.log(Object.assign(Object.create(null), { a: 1 }), named, [, , 3], new Date(NaN), new Proxy(no, handler));
  console.log(Object.defineProperty(new Error('x'), 'stack', { get: no }));
  console.log(Object.defineProperty(new Error('named'), 'name', { get: no }));
  return 'fine';
};
