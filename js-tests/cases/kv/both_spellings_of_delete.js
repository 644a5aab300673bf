// @reply []
() => {
  const kv = this.hostServices.kv;
  kv.set('a', '1');
  kv.set('b', '2');
  kv.del('a');
  kv.delete('b');
  return kv.keys();
};
