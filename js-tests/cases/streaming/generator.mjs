// @stream 1
// @stream {"n":2}
// @stream three
// @reply
export default async function* () {
  yield 1;
  yield { n: 2 };
  await null;
  yield 'three';
}
