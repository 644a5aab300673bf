// @reply ["sync","micro","timer"]
export default async () => {
  const seen = [];
  const timer = new Promise((resolve) => setTimeout(() => resolve(seen.push('timer')), 0));
  const micro = Promise.resolve().then(() => seen.push('micro'));
  seen.push('sync');
  await micro;
  await timer;
  return seen;
};
