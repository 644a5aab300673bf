// @stream a
// @stream b
// @reply
async function* letters() {
  yield 'a';
  yield 'b';
}
() => letters();
