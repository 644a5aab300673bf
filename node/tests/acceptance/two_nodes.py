"""Two nodes share the work of one function: every request is answered once, and both nodes answer some."""

import asyncio
import collections

from nexclient import deploy, fixture, nodes, run

REQUESTS = 1000


async def main(nc):
    found = [answer["data"] for answer in await nodes(nc, 2)]
    source = fixture("js", "whoami.mjs")
    for number, node in enumerate(found):
        await deploy(nc, node, "whoami", source, ["whoami"], environment={"NODE": f"{number}"})

    # Each request has a reply subject of its own, so a second answer cannot hide behind the first.
    inbox = nc.new_inbox()
    answers = collections.Counter()
    answered_by = collections.Counter()
    all_answered = asyncio.Event()
    # Fewer than a function's queue holds, so that no call is refused for overload.
    window = asyncio.Semaphore(100)
    wrong = []

    async def on_answer(message):
        number = message.subject.rpartition(".")[2]
        answers[number] += 1
        window.release()
        if message.data.decode() != number or not message.headers or "X-Node" not in message.headers:
            wrong.append((number, message.data, message.headers))
        else:
            answered_by[message.headers["X-Node"]] += 1
        if len(answers) == REQUESTS:
            all_answered.set()

    await nc.subscribe(f"{inbox}.*", cb=on_answer)
    for number in range(REQUESTS):
        await asyncio.wait_for(window.acquire(), 20)
        await nc.publish("whoami", f"{number}".encode(), reply=f"{inbox}.{number}")
    await asyncio.wait_for(all_answered.wait(), 20)
    # A second answer to the last request would arrive about as fast as the first.
    await asyncio.sleep(0.5)

    assert not wrong, f"{len(wrong)} wrong answers, the first: {wrong[0]}"
    twice = {number: count for number, count in answers.items() if count != 1}
    assert not twice, f"answered more than once: {twice}"
    assert set(answered_by) == {"0", "1"}, f"answers by node: {dict(answered_by)}"
    print("answers by node:", dict(answered_by))


run(main)
