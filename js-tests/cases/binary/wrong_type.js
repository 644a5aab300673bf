// @reply ["INVALID_ARGUMENT","INVALID_ARGUMENT","INVALID_ARGUMENT"]
() => {
  const { kv, objectStore, messaging } = this.hostServices;
  const code = (action) => {
    try {
      action();
    } catch (error) {
      return error.code;
    }
  };
  return [
    code(() => kv.set('k', 42)),
    code(() => objectStore.put('k', { a: 1 })),
    code(() => messaging.publish('s', null)),
  ];
};
