"""Bytes survive: replies, payloads, and values that the function and a foreign client write for each other."""

import asyncio

from nexclient import call, check, request, run

EVERY_BYTE = bytes(range(256))


async def replies(nc):
    check(await call(nc, "bytes"), EVERY_BYTE, "Uint8Array reply")
    check(await call(nc, "identity", EVERY_BYTE), EVERY_BYTE, "256 byte values there and back")
    check(await call(nc, "identity"), b"", "empty payload there and back")
    million = EVERY_BYTE * 3906 + EVERY_BYTE[:64]
    check(len(million), 1_000_000, "the test's own arithmetic")
    for subject in ("identity", "module.identity"):
        check(await call(nc, subject, million), million, f"{subject}: 1,000,000 bytes there and back")


async def headers_and_streams(nc):
    reply = await request(nc, "reply", b"abc")
    check(reply.data, b"abc", "reply body")
    check(reply.headers.get("X-Length"), "3", "reply header")
    check(reply.headers.get("X-Subject"), "reply", "reply header")

    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    await nc.publish("stream", b"3", reply=inbox)
    streamed = [(await subscription.next_msg(timeout=5)).data for _ in range(4)]
    check(streamed, [b"1", b"2", b"3", b""], "streamed replies, then the empty end")


async def shared_values(nc):
    js = nc.jetstream()

    check(await call(nc, "shared.kv.set", EVERY_BYTE), b"", "kv.set answers nothing")
    kv = await js.key_value("hs_default_sharedjs_kv")
    check((await kv.get("shared")).value, EVERY_BYTE, "key written by the function, read here")
    await kv.put("shared", EVERY_BYTE[::-1])
    check(await call(nc, "shared.kv.get"), EVERY_BYTE[::-1], "key written here, read by the function")

    # Two chunks of the object store, so that they are seen to be put together; a bucket holds 512 KiB by default.
    large = EVERY_BYTE * 780
    await call(nc, "shared.object.put", large)
    store = await js.object_store("hs_default_sharedjs_obj")
    check((await store.get("shared")).data, large, "object written by the function, read here")
    await store.put("shared", large[::-1])
    check(await call(nc, "shared.object.get"), large[::-1], "object written here, read by the function")


async def main(nc):
    await replies(nc)
    await headers_and_streams(nc)
    await shared_values(nc)


run(main)
