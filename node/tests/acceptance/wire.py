"""The control interface as the original client speaks it: discovery, deploy with a structured location, signed claims
and a sealed environment, information, stop, and the errors that a wrong request gets.

A node with `valid_issuers` set to the sample issuer, and no workloads, is running.
"""

import base64
import json

import nats.errors as nats_errors
from nexclient import (
    call,
    check,
    claims,
    control,
    data_of,
    deploy_request,
    error_of,
    fixture,
    issuer,
    nodes,
    publisher,
    run,
    upload,
)

NAMESPACE = "default"


async def discovery(nc):
    [ping] = await nodes(nc, 1)
    check(ping["type"], "io.nats.nex.v1.ping_response", "type of a ping answer")
    node = ping["data"]
    assert node["node_id"].startswith("N"), node
    assert node["target_xkey"].startswith("X"), node
    assert isinstance(node["version"], str) and isinstance(node["uptime"], str), node
    check(node["running_machines"], 0, "workloads of an empty node")

    check((await data_of(nc, f"$NEX.PING.{node['node_id']}"))["node_id"], node["node_id"], "ping of one node")

    tags = node["tags"]
    wanted = {"os": tags["nex.os"], "arch": tags["nex.arch"], "workload_types": ["v8"]}
    [bid] = await nodes(nc, 1, "$NEX.AUCTION", json.dumps(wanted).encode())
    check(bid["type"], "io.nats.nex.v1.auction_response", "type of an auction answer")
    check(bid["data"]["node_id"], node["node_id"], "who bids")
    # A node that does not fit stays silent; the next answer to the same inbox is that of a later, fitting request.
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(f"{inbox}.*")
    unfit = ({"os": "plan9"}, {"tags": {"no": "such"}}, {"workload_types": ["v8", "cobol"]})
    for number, body in enumerate(unfit):
        await nc.publish("$NEX.AUCTION", json.dumps(body).encode(), reply=f"{inbox}.unfit{number}")
    await nc.publish("$NEX.AUCTION", b"{}", reply=f"{inbox}.fit")
    first = await subscription.next_msg(timeout=5)
    check(first.subject, f"{inbox}.fit", "who answers an auction that the node does not fit")
    await subscription.unsubscribe()

    info = await control(nc, f"$NEX.INFO.{NAMESPACE}.{node['node_id']}")
    check(info["type"], "io.nats.nex.v1.info_response", "type of an info answer")
    check(info["data"]["public_xkey"], node["target_xkey"], "xkey in the info answer")
    check(info["data"]["machines"], [], "machines of an empty node")
    assert "v8" in info["data"]["supported_workload_types"], info
    return node


async def life_of_a_workload(nc, node):
    events = await nc.subscribe(f"$NEX.events.{NAMESPACE}.>")
    logs = await nc.subscribe("$NEX.logs.>")
    source = fixture("js", "env.mjs")
    environment = {"GREETING": "hello", "umlaut": "äöü", "empty": ""}
    digest = await upload(nc, "env", source)
    body = deploy_request(node, "env", digest, ["env.*"], environment=environment)
    answer = await data_of(nc, f"$NEX.DEPLOY.{NAMESPACE}.{node['node_id']}", body)
    check(answer["started"], True, "started")
    check(answer["name"], "env", "name")
    check(answer["issuer"], issuer().public, "issuer")
    workload = answer["id"]

    event = json.loads((await events.next_msg(timeout=5)).data)
    check(event["specversion"], "1.0", "CloudEvents version")
    check(event["type"], "workload_deployed", "event of a deploy")
    check(event["data"]["workload_name"], "env", "workload of the event")

    check(json.loads(await call(nc, "env.it", b"")), environment, "environment, sealed here, opened there")
    for level, text in (
        ("DEBUG", "debug: called on env.it"),
        ("INFO", "info: 3 variables"),
        ("WARN", "warn"),
        ("ERROR", "error"),
    ):
        message = await logs.next_msg(timeout=5)
        tokens = message.subject.split(".")
        check(tokens[:4], ["$NEX", "logs", NAMESPACE, node["node_id"]], "subject of a log line")
        check(tokens[4:], ["env", workload], "workload and ID in the subject of a log line")
        line = json.loads(message.data)
        check((line["level"], line["text"]), (level, text), "log line")

    [machine] = (await data_of(nc, f"$NEX.INFO.{NAMESPACE}.{node['node_id']}"))["machines"]
    check(machine["id"], workload, "ID in the info answer")
    check(machine["healthy"], True, "health in the info answer")
    check(machine["workload"]["name"], "env", "name in the info answer")
    check(machine["workload"]["type"], "v8", "type in the info answer")
    elsewhere = await data_of(nc, f"$NEX.INFO.elsewhere.{node['node_id']}")
    check(elsewhere["machines"], [], "another namespace sees nothing")
    check((await data_of(nc, f"$NEX.PING.{node['node_id']}"))["running_machines"], 1, "workloads of the node")

    stop = f"$NEX.STOP.{NAMESPACE}.{node['node_id']}"

    def stop_request(key, workload_id=workload):
        token = claims(key, workload_id, name="env")
        return {"node_id": node["node_id"], "workload_id": workload_id, "workload_jwt": token}

    elsewhere = f"$NEX.STOP.elsewhere.{node['node_id']}"
    check(await error_of(nc, elsewhere, stop_request(issuer())), "No such workload", "stop in another namespace")
    check(await error_of(nc, stop, stop_request(issuer(), "nobody")), "No such workload", "stop of nothing")
    stranger = await error_of(nc, stop, stop_request(issuer("other-issuer.nk")))
    check(stranger.endswith("is the issuer that originally started it"), True, stranger)
    captured = dict(stop_request(issuer()), workload_jwt=body["workload_jwt"])
    check("cloned or captured" in await error_of(nc, stop, captured), True, "stop with the start's own token")
    check(json.loads(await call(nc, "env.it", b"")), environment, "still running after refused stops")

    stopped = await control(nc, stop, stop_request(issuer()))
    check(stopped["type"], "io.nats.nex.v1.stop_response", "type of a stop answer")
    assert not stopped.get("error"), stopped
    check(stopped["data"]["stopped"], True, "stopped")
    check(stopped["data"]["id"], workload, "ID of the stopped workload")
    try:
        await nc.request("env.it", b"", timeout=2)
        raise AssertionError("a stopped function answered")
    except nats_errors.NoRespondersError:
        pass
    await events.unsubscribe()
    await logs.unsubscribe()


async def refusals(nc, node):
    source = fixture("js", "identity.js")
    digest = await upload(nc, "identity", source)
    subject = f"$NEX.DEPLOY.{NAMESPACE}.{node['node_id']}"

    def body(signed_digest=digest, key=None, **fields):
        changed = {**deploy_request(node, "identity", signed_digest, ["identity"], key=key), **fields}
        return {name: value for name, value in changed.items() if value is not ...}

    sealed_for_another = publisher().seal(b"{}", publisher().public)
    wrong = {
        "Unsupported workload type": body(type="cobol"),
        "deny list": body(trigger_subjects=["$SYS.REQ.>"]),
        "Failed to decrypt environment": body(environment=base64.b64encode(sealed_for_another).decode()),
        "workload JWT": body(workload_jwt="not.a.token"),
        "issuer": body(key=issuer("other-issuer.nk")),
        "the signed claim says": body(signed_digest="0" * 64),
        "Failed to cache workload bytes": body(location="nats://NEXCLIFILES/nothing-here"),
        "deserialize": [],
    }
    for part, request in wrong.items():
        error = await error_of(nc, subject, request)
        assert part.lower() in error.lower(), f"expected {part!r} in {error!r}"

    for field in ("type", "location", "workload_jwt", "environment", "sender_public_key", "trigger_subjects"):
        error = await error_of(nc, subject, body(**{field: ...}))
        assert error, field
    check((await data_of(nc, f"$NEX.PING.{node['node_id']}"))["running_machines"], 0, "after refused deploys")

    # A location as a plain string is taken as well.
    answer = await data_of(nc, subject, body(location="nats://NEXCLIFILES/identity"))
    check(answer["started"], True, "started")
    check(await call(nc, "identity", b"abc"), b"abc", "deployed by string location")


async def main(nc):
    node = await discovery(nc)
    await life_of_a_workload(nc, node)
    await refusals(nc, node)


run(main)
