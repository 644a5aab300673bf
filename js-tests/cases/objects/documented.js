// @payload hello!
// @reply {"list":["hello2"],"hello2":"hello!"}
(subject, payload) => {
  const store = this.hostServices.objectStore;
  store.put('hello', payload);
  store.delete('hello');
  store.put('hello2', payload);
  return { list: store.list().map((info) => info.name), hello2: String.fromCharCode(...store.get('hello2')) };
};
