// Sends every body back. The function gets the bytes, as nex functions do; a body that is only passed on never becomes
// JavaScript's.
export default {
  async fetch(request) {
    return new Response(await request.arrayBuffer());
  },
};
