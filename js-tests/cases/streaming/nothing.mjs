// @reply
export default async function* () {}
