// @reply ["a","b"]
() => {
  this.hostServices.objectstore.put('a', '1');
  this.hostServices.objectStore.put('b', '2');
  this.objectStore('other').put('c', '3');
  this.objectstore('other').del('c');
  return this.hostServices.objectStore.list().map((info) => info.name);
};
