"""A failed call answers its caller, and quickly; loops end at their limit; the neighbour notices nothing.

WALL_MS: the wall-clock limit that the node is configured with.
"""

import asyncio
import json
import os
import statistics
import time

from nexclient import call, check, failure, run

WALL = int(os.environ["WALL_MS"]) / 1000


async def exceptions(nc):
    failed, _ = await failure(nc, "throws")
    check(failed.kind, "exception", "Nex-Error-Kind")
    check(failed.code, "500", "Nats-Service-Error-Code")
    check(failed.text, "TypeError: x", "Nats-Service-Error")
    check(failed.body, b"", "body of an error answer")

    # The median, because the machine of the test may be busy with other tests.
    took = [(await failure(nc, "throws"))[1] for _ in range(9)]
    median = statistics.median(took)
    assert median < 0.1, f"an exception took {median * 1000:.0f} ms to answer, of {took}"

    # Nobody to answer: an event and a log line instead.
    events = await nc.subscribe("$NEX.events.default.function_exec_failed")
    logs = await nc.subscribe("$NEX.logs.default.>")
    await nc.publish("throws", b"")
    event = json.loads((await events.next_msg(timeout=5)).data)
    check(event["data"]["workload_name"], "throwsjs", "event of a call without reply subject")
    assert "TypeError: x" in event["data"]["error"], event
    line = json.loads((await logs.next_msg(timeout=5)).data)
    check(line["level"], "ERROR", "level of the log line")
    assert "TypeError: x" in line["text"], line
    await events.unsubscribe()
    await logs.unsubscribe()


class Neighbour:
    """Calls another function of the same node without a pause, and checks each of its answers."""

    def __init__(self, nc):
        self.nc = nc
        self.calls = 0
        self.slowest = 0.0
        self.stopped = False
        self.task = asyncio.create_task(self.call_on())

    async def call_on(self):
        while not self.stopped:
            start = time.monotonic()
            payload = f"{self.calls}".encode()
            check(await call(self.nc, "identity", payload, timeout=5), payload, "neighbour")
            self.slowest = max(self.slowest, time.monotonic() - start)
            self.calls += 1
            await asyncio.sleep(0.01)

    async def stop(self):
        # Not by cancelling the task: before Python 3.12, `wait_for` can swallow that.
        self.stopped = True
        await self.task
        return self.calls, self.slowest


async def loops(nc):
    for subject in ("spin", "spin.array"):
        check(await call(nc, subject, b"before"), b"before", f"{subject}, before it loops")
        neighbour = Neighbour(nc)
        failed, took = await failure(nc, subject, b"spin", timeout=WALL + 5)
        check(failed.kind, "wall_timeout", f"{subject}: Nex-Error-Kind")
        check(failed.code, "504", f"{subject}: Nats-Service-Error-Code")
        assert WALL - 0.05 <= took < WALL + 0.5, f"{subject}: answered after {took:.3f} s, limit {WALL} s"

        start = time.monotonic()
        check(await call(nc, subject, b"after"), b"after", f"{subject}, after it looped")
        again = time.monotonic() - start
        # The neighbour goes on for a while, over whatever the node does to the process that loops.
        for n in range(20):
            payload = f"again {n}".encode()
            check(await call(nc, subject, payload), payload, f"{subject}, after it looped")
            await asyncio.sleep(0.05)
        calls, slowest = await neighbour.stop()
        assert slowest < 1, f"{subject}: the neighbour waited {slowest:.3f} s for an answer"
        assert calls > 20, f"{subject}: the neighbour got {calls} answers only"
        print(
            f"{subject}: answered after {took * 1000:.0f} ms, the next call took {again * 1000:.0f} ms;"
            f" the neighbour: {calls} answers, the slowest took {slowest * 1000:.0f} ms"
        )


async def main(nc):
    await exceptions(nc)
    await loops(nc)


run(main)
