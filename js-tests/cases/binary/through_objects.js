// @payload-hex 00 80 ff c3 28
// @reply-hex 00 80 ff c3 28
(subject, payload) => {
  this.hostServices.objectStore.put('bytes', payload);
  return this.hostServices.objectStore.get('bytes');
};
