// What was streamed before stays.
// @wall-ms 300
// @stream 1
// @error wall_timeout
export default async function* () {
  yield 1;
  await new Promise((resolve) => setTimeout(resolve, 60000));
}
