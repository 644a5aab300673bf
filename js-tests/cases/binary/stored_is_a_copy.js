// Changing the bytes afterwards does not change what was stored, nor what another `get` gives.
// @reply ["1,2,3","1,2,3"]
() => {
  const { kv } = this.hostServices;
  const bytes = Uint8Array.of(1, 2, 3);
  kv.set('k', bytes);
  bytes.fill(9);
  const first = kv.get('k');
  const seen = first.join(',');
  first.fill(7);
  return [seen, kv.get('k').join(',')];
};
