// @reply ["string","AbortSignal",false,true]
export default (msg, env, ctx) => [
  typeof ctx.id,
  ctx.signal.constructor.name,
  ctx.signal.aborted,
  new Date(ctx.deadline) > new Date(),
];
