// @subject s
// @reply <s>
const wrap = (text) => `<${text}>`;
const handler = (subject) => wrap(subject);
handler;
