// Many requests of one call are in flight at once.
// @reply 100
export default async (msg, env) => {
  const asked = Array.from({ length: 100 }, (_, n) => env.nats.request('svc.echo', `${n}`));
  const answers = await Promise.all(asked);
  return answers.filter((answer, n) => answer.text() === `${n}`).length;
};
