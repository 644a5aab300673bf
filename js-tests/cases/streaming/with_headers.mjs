// @stream body
// @stream-header X-Part: 1
// @reply
export default async function* () {
  yield new Reply('body', { headers: { 'X-Part': '1' } });
}
