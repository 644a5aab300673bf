// @payload-hex 00 01 7f 80 c3 28 fe ff
// @reply-hex 00 01 7f 80 c3 28 fe ff
export default (msg) => msg.data;
