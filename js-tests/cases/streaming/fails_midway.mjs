// What was streamed stays; then comes the error.
// @stream 1
// @error exception Error: half way
export default async function* () {
  yield 1;
  throw new Error('half way');
}
