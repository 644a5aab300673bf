
export default {
  async fetch(request) {
    return new Response(handle(await request.text()));
  },
};
