// @payload x
// @reply later x
async (subject, payload) => {
  await null;
  return `later ${new TextDecoder().decode(payload)}`;
};
