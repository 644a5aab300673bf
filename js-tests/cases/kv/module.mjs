// @payload hello!
// @reply {"keys":["hello2"],"hello2":"hello!","isPromise":true}
export default async (msg, env) => {
  const kv = env.kv();
  const first = kv.set('hello', msg.data);
  await first;
  await kv.delete('hello');
  await kv.set('hello2', msg.data);
  return {
    keys: await kv.keys(),
    hello2: new TextDecoder().decode(await kv.get('hello2')),
    isPromise: first instanceof Promise,
  };
};
