// An ArrayBuffer or any view is taken as the bytes it covers.
// @reply ["1,2","2,3","1,0,2,0"]
() => {
  const { kv } = this.hostServices;
  const round = (value) => (kv.set('k', value), kv.get('k').join(','));
  return [
    round(Uint8Array.of(1, 2).buffer),
    round(Uint8Array.of(1, 2, 3, 4).subarray(1, 3)),
    round(Uint16Array.of(1, 2)),
  ];
};
