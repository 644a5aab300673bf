"""`kill -9` of the agents under 100 requests per second: everybody is answered, and the function comes back by itself.

NODE_PID: the node's process; its children are the agents.
"""

import asyncio
import os
import signal
import time

from nexclient import Failed, call, check, request, run

RATE = 100
SECONDS = 6
KILLS_AT = (1.0, 3.5)
ANSWER_WITHIN = 2.0


def agents(node):
    """Process IDs of the node's agents."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as stat:
                # The command stands in parentheses and may contain anything; what follows the last one is regular.
                command, _, fields = stat.read().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        state, parent = fields.split()[:2]
        if parent == node and "nex-agent" in command and state != "Z":
            found.append(int(entry))
    return found


async def main(nc):
    node = os.environ["NODE_PID"]
    check(await call(nc, "identity", b"ready"), b"ready", "before the kill")

    answers, errors, silent = [], [], []

    async def one(number, intended):
        payload = f"{number}".encode()
        try:
            reply = await request(nc, "identity", payload, timeout=ANSWER_WITHIN + 3)
            check(reply.data, payload, "answer")
            kind, into = "reply", answers
        except Failed as failed:
            kind, into = failed.kind, errors
        except Exception as problem:  # no responders, a timeout of ours, a wrong answer
            kind, into = repr(problem), silent
        # Counted from the time the request was due, so that a stall of the sender counts too.
        into.append((number, kind, time.monotonic() - intended))

    start = time.monotonic()
    kills = [start + at for at in KILLS_AT]
    tasks = []
    for number in range(RATE * SECONDS):
        intended = start + number / RATE
        if (wait := intended - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if kills and time.monotonic() >= kills[0]:
            kills.pop(0)
            victims = agents(node)
            assert victims, "the node has no agent process"
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
        tasks.append(asyncio.create_task(one(number, intended)))
    await asyncio.gather(*tasks)

    assert not silent, f"{len(silent)} requests without an answer, the first: {silent[:3]}"
    late = [entry for entry in answers + errors if entry[2] > ANSWER_WITHIN]
    assert not late, f"{len(late)} answers later than {ANSWER_WITHIN} s, the first: {late[:3]}"
    check(len(answers) + len(errors), RATE * SECONDS, "answers and error answers")
    kinds = {kind for _, kind, _ in errors}
    assert kinds <= {"not_ready"}, f"unexpected kinds of error: {kinds}"

    # Between the kills and after them the function answered again.
    for after, before in zip(KILLS_AT, (*KILLS_AT[1:], SECONDS)):
        back = [number for number, _, _ in answers if after * RATE < number < before * RATE]
        assert back, f"no answer between {after} s and {before} s"
    check(await call(nc, "identity", b"alive"), b"alive", "after the kill")
    slowest = max(entry[2] for entry in answers + errors)
    print(f"{len(answers)} replies, {len(errors)} error replies, the slowest after {slowest * 1000:.0f} ms")


run(main)
