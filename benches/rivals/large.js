// The end of a bundle: one module in eight has a part in a call.
const used = [...modules.values()].filter((_, index) => index % 8 === 0);

function handle(text) {
  if (!used.every((module) => module.accepts(text.length))) throw new RangeError("a module does not accept it");
  return `${ID} ${text}`;
}
