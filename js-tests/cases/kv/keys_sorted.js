// @reply ["a","b","c"]
() => {
  const { kv } = this.hostServices;
  for (const key of ['b', 'c', 'a']) kv.set(key, key);
  return kv.keys();
};
