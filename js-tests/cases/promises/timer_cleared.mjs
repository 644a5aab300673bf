// @reply ["second"]
export default async () => {
  const fired = [];
  clearTimeout(setTimeout(() => fired.push('first'), 1));
  await new Promise((resolve) => setTimeout(resolve, 10));
  fired.push('second');
  return fired;
};
