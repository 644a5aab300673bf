
export default (msg) => handle(msg.text());
