// @payload-hex 00 80 ff c3 28
// @reply-hex 00 80 ff c3 28
(subject, payload) => {
  this.hostServices.kv.set('bytes', payload);
  return this.hostServices.kv.get('bytes');
};
