// @reply fine
() => {
  this.hostServices.kv.delete('nothing');
  return 'fine';
};
