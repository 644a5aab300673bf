// @reply {"text":"ask","many":["1: ask","2: ask","3: ask"]}
export default async (msg, env) => {
  const many = [];
  for await (const reply of env.nats.requestMany('svc.many', 'ask', { timeout: 200 })) many.push(reply.text());
  await env.nats.publish('somewhere', 'ask');
  return { text: (await env.nats.request('svc.echo', 'ask')).text(), many: many.sort() };
};
