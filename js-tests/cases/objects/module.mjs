// @reply {"list":["o"],"content":"hi"}
export default async (msg, env) => {
  const objects = env.objects('files');
  await objects.put('o', 'hi');
  return {
    list: (await objects.list()).map((info) => info.name),
    content: new TextDecoder().decode(await objects.get('o')),
  };
};
