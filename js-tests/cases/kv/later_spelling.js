// `this.kv(bucket)` is another bucket than the workload's own.
// @reply {"named":["k"],"own":[],"again":"v"}
() => {
  this.kv('settings').set('k', 'v');
  return {
    named: this.kv('settings').keys(),
    own: this.hostServices.kv.keys(),
    again: new TextDecoder().decode(this.kv('settings').get('k')),
  };
};
