"""The example functions of the documentation answer as documented, in both spellings and in module form."""

import asyncio
import http.server
import json
import threading

from nexclient import call, check, run

HELLO = b"hello!"


class Requests(http.server.BaseHTTPRequestHandler):
    """Answers every method as the documented example expects, and remembers what it was asked."""

    protocol_version = "HTTP/1.1"
    seen = []

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.command, self.path, body))
        status = {"GET": 200, "HEAD": 200, "POST": 201}.get(self.command, 204)
        content = json.dumps({"method": self.command}).encode() if status != 204 else b""
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = answer

    def log_message(self, *_):
        pass


async def echo(nc):
    expected = b'{"triggered_on":"helloworld","payload":"hello world"}'
    check(await call(nc, "helloworld", b"hello world"), expected, "classic echo")
    expected = b'{"triggered_on":"module.echo","payload":"hello world"}'
    check(await call(nc, "module.echo", b"hello world"), expected, "module echo")


async def key_value(nc):
    for subject in ("hello.kv", "hello.kv.v3"):
        # Twice: the function leaves the same keys behind, however often it runs.
        for _ in range(2):
            answer = json.loads(await call(nc, subject, HELLO))
            check(answer, {"keys": ["hello2"], "hello2": "hello!"}, subject)


async def object_store(nc):
    for subject in ("hello.objects", "hello.objects.v3"):
        for _ in range(2):
            answer = json.loads(await call(nc, subject, HELLO))
            check([entry["name"] for entry in answer["list"]], ["hello2"], f"{subject}: list")
            check(answer["list"][0]["size"], len(HELLO), f"{subject}: size in the list")
            check(answer["hello2"], "hello!", f"{subject}: content")


async def messaging(nc):
    published = asyncio.Queue()
    await nc.subscribe("hello.world", cb=published.put)

    async def respond(message):
        await message.respond(b"resp: " + message.data)

    await nc.subscribe("hello.world.request", cb=respond)

    def responder(number):
        async def respond_with_number(message):
            await message.respond(f"resp #{number}: ".encode() + message.data)

        return respond_with_number

    for number in (1, 2, 3):
        await nc.subscribe("hello.world.request.many", cb=responder(number))
    await nc.flush()

    payload = b"asdfghjkl;'"
    everyone = [f"resp #{number}: asdfghjkl;'" for number in (1, 2, 3)]
    for subject in ("hello.messaging", "hello.messaging.v3"):
        answer = json.loads(await call(nc, subject, payload))
        check(answer["hello.world.request"], "resp: asdfghjkl;'", f"{subject}: request")
        check(sorted(answer["hello.world.request.many"]), everyone, f"{subject}: requestMany")
        message = await asyncio.wait_for(published.get(), 5)
        check(message.data, payload, f"{subject}: publish")

    answer = json.loads(await call(nc, "module.services", payload))
    check(answer["kv"], "asdfghjkl;'", "module form: kv")
    check(answer["object"], "asdfghjkl;'", "module form: objects")
    check(answer["request"], "resp: asdfghjkl;'", "module form: request")
    check(sorted(answer["requestMany"]), everyone, "module form: requestMany")
    message = await asyncio.wait_for(published.get(), 5)
    check(message.data, payload, "module form: publish")


async def http_client(nc):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Requests)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}".encode()
    statuses = {"get": 200, "post": 201, "put": 204, "patch": 204, "del": 204, "head": 200}
    for subject in ("hello.http", "hello.http.v3"):
        Requests.seen.clear()
        answer = json.loads(await call(nc, subject, base))
        check({method: answer[method]["status"] for method in statuses}, statuses, subject)
        check(answer["get"]["response"], '{"method": "GET"}', f"{subject}: body")
        check(
            Requests.seen,
            [
                ("GET", "/hello?name=nex&n=1", b""),
                ("POST", "/hello", b"posted"),
                ("PUT", "/hello", b"replaced"),
                ("PATCH", "/hello", b"patched"),
                ("DELETE", "/hello", b""),
                ("HEAD", "/hello", b""),
            ],
            f"{subject}: what the server saw",
        )
    server.shutdown()


async def main(nc):
    await echo(nc)
    await key_value(nc)
    await object_store(nc)
    await messaging(nc)
    await http_client(nc)


run(main)
