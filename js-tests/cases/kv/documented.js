// @payload hello!
// @reply {"keys":["hello2"],"hello2":"hello!"}
(subject, payload) => {
  const kv = this.hostServices.kv;
  kv.set('hello', payload);
  kv.delete('hello');
  kv.set('hello2', payload);
  return { keys: kv.keys(), hello2: String.fromCharCode(...kv.get('hello2')) };
};
