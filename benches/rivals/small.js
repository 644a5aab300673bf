// What stands in for a user's function of 1 KB: it checks a message and answers with it.
const LONGEST = 65_536;

class InvalidMessage extends Error {
  constructor(reason) {
    super(`invalid message: ${reason}`);
    this.name = "InvalidMessage";
  }
}

const checks = [
  [(text) => text.length > 0, "it is empty"],
  [(text) => text.length <= LONGEST, `it has more than ${LONGEST} characters`],
  [(text) => !/[\u0000-\u001f]/.test(text), "it has control characters"],
];

function validate(text) {
  for (const [isFine, reason] of checks) {
    if (!isFine(text)) throw new InvalidMessage(reason);
  }
  return text;
}

function handle(text) {
  return `${ID} ${validate(text)}`;
}
