// @reply ["second",1]
() => {
  const { objectStore } = this.hostServices;
  objectStore.put('o', 'first');
  objectStore.put('o', 'second');
  return [new TextDecoder().decode(objectStore.get('o')), objectStore.list().length];
};
