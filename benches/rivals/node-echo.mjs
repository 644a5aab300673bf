// Node.js as an echo over NATS, with the official client: a callback, which is its fastest way to be told of messages.
import { connect } from "@nats-io/transport-node";

const [servers, subject] = process.argv.slice(2);
const connection = await connect({ servers });
connection.subscribe(subject, {
  queue: "echo",
  callback(error, message) {
    if (error) throw error;
    message.respond(message.data);
  },
});
await connection.flush();
console.log("ready");
