// In an arrow at the top level `this` is the global object, which has both spellings of the host services.
// @reply ["object","object","function","function","function","object","object"]
() => [
  typeof this.hostServices,
  typeof this.hostServices.objectstore,
  typeof this.kv,
  typeof this.objectStore,
  typeof this.objectstore,
  typeof this.http,
  typeof this.messaging,
];
