// A value that cannot be shown is no reason for the call to fail.
// @log INFO [not printable: Error: no]
// @reply fine
() => {
  console.log({
    get trap() {
      throw new Error('no');
    },
  });
  return 'fine';
};
