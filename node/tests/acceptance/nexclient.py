"""A client of nex written from the protocol's description alone: nats-py for the connection, plain Python for the rest,
nothing of this project. What works from here works for the clients that operators already have.

The test that starts a script passes what it needs in the environment: NATS_URL, and whatever the script reads itself.
"""

import asyncio
import base64
import hashlib
import json
import os
import sys
import time
import uuid

import nats
from nats.js.errors import BucketNotFoundError, NotFoundError
from nkeys25519 import AccountKey, CurveKey

FIXTURES = os.path.join(os.path.dirname(__file__), "..", "..", "..", "fixtures")


def run(main):
    """Runs `main(nc)` on a connection and lets any failure end the script with its traceback."""

    async def connected():
        nc = await nats.connect(os.environ["NATS_URL"], allow_reconnect=False)
        try:
            await main(nc)
        finally:
            await nc.close()

    asyncio.run(connected())
    print("ok", os.path.basename(sys.argv[0]))


def check(actual, expected, what):
    """Compares, and says what differs in a way that survives megabyte payloads."""
    if actual != expected:
        raise AssertionError(f"{what}: got {abbreviated(actual)}, expected {abbreviated(expected)}")


def abbreviated(value):
    text = repr(value)
    return text if len(text) <= 600 else f"{text[:600]}... ({len(value)} long)"


# --- Calling functions ------------------------------------------------------------------------------------------------


class Failed(Exception):
    """The function answered with an error, in the headers of the NATS micro convention."""

    def __init__(self, message):
        super().__init__(message.headers)
        self.code = message.headers["Nats-Service-Error-Code"]
        self.text = message.headers["Nats-Service-Error"]
        self.kind = message.headers["Nex-Error-Kind"]
        self.body = message.data


async def request(nc, subject, payload=b"", timeout=10, headers=None):
    """One request; an error answer raises `Failed`."""
    message = await nc.request(subject, payload, timeout=timeout, headers=headers)
    if message.headers and "Nats-Service-Error-Code" in message.headers:
        raise Failed(message)
    return message


async def call(nc, subject, payload=b"", timeout=10):
    """One request, answered with bytes."""
    return (await request(nc, subject, payload, timeout)).data


async def failure(nc, subject, payload=b"", timeout=10):
    """One request that must fail: the error, and the seconds it took."""
    start = time.monotonic()
    try:
        reply = await request(nc, subject, payload, timeout)
    except Failed as failed:
        return failed, time.monotonic() - start
    raise AssertionError(f"{subject} answered {abbreviated(reply.data)} instead of failing")


# --- Keys and claims --------------------------------------------------------------------------------------------------


def fixture(*path):
    with open(os.path.join(FIXTURES, *path), "rb") as file:
        return file.read()


def issuer(name="issuer.nk"):
    """An account key that signs claims."""
    return AccountKey(fixture("keys", name).decode().strip())


def publisher():
    """The sample xkey."""
    return CurveKey(fixture("keys", "publisher.xk").decode().strip())


def claims(key, subject, age=0, **nats_claims):
    """A token as jwt/v2 makes its generic claims, signed `age` seconds ago."""

    def part(value):
        raw = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    body = {
        "jti": base64.b32hexencode(os.urandom(32)).decode().rstrip("="),
        "iat": int(time.time()) - age,
        "iss": key.public,
        "sub": subject,
        "nats": nats_claims,
    }
    signed = part({"typ": "JWT", "alg": "ed25519-nkey"}) + b"." + part(body)
    return (signed + b"." + part(key.sign(signed))).decode()


# --- Control interface ------------------------------------------------------------------------------------------------


async def control(nc, subject, request_body=None, timeout=10):
    """One control request: the envelope as it came."""
    payload = b"" if request_body is None else json.dumps(request_body).encode()
    reply = await nc.request(subject, payload, timeout=timeout)
    envelope = json.loads(reply.data)
    assert isinstance(envelope.get("type"), str), f"{subject}: no type in {envelope}"
    return envelope


async def data_of(nc, subject, request_body=None, timeout=10):
    """The data of a control request that must succeed."""
    envelope = await control(nc, subject, request_body, timeout)
    assert not envelope.get("error"), f"{subject}: {envelope['error']}"
    return envelope["data"]


async def error_of(nc, subject, request_body=None):
    """The error of a control request that must fail."""
    envelope = await control(nc, subject, request_body)
    assert envelope.get("error"), f"{subject}: accepted, {envelope}"
    return envelope["error"]


async def nodes(nc, count, subject="$NEX.PING", body=b""):
    """Answers of `count` nodes to a broadcast."""
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    await nc.publish(subject, body, reply=inbox)
    found = [json.loads((await subscription.next_msg(timeout=10)).data) for _ in range(count)]
    await subscription.unsubscribe()
    return found


async def upload(nc, name, content, bucket="NEXCLIFILES"):
    """Puts an artefact where nodes fetch artefacts; gives back its SHA-256 in hex."""
    js = nc.jetstream()
    try:
        store = await js.object_store(bucket)
    except (BucketNotFoundError, NotFoundError):
        store = await js.create_object_store(bucket)
    await store.put(name, content)
    return hashlib.sha256(content).hexdigest()


def go_url(bucket, key):
    """Go's `url.URL` as its JSON encoder writes it, which is how the original client names an artefact."""
    return {
        "Scheme": "nats",
        "Opaque": "",
        "User": None,
        "Host": bucket,
        "Path": f"/{key}",
        "RawPath": "",
        "OmitHost": False,
        "ForceQuery": False,
        "RawQuery": "",
        "Fragment": "",
        "RawFragment": "",
    }


def deploy_request(node, name, digest, subjects, environment=None, key=None):
    """A deploy request as the original 0.3 client builds it, for `node` as its PING answer describes it."""
    key = key or issuer()
    sender = publisher()
    sealed = sender.seal(json.dumps(environment or {}).encode(), node["target_xkey"])
    request_id = str(uuid.uuid4())
    return {
        "id": request_id,
        "argv": [],
        "description": "deployed by a foreign client",
        "type": "v8",
        "location": go_url("NEXCLIFILES", name),
        # Not of this second: a stop request signed in the same second as the start passes for a copy of it.
        "workload_jwt": claims(key, request_id, age=2, hash=digest, name=name),
        "workload_name": name,
        "environment": base64.b64encode(sealed).decode(),
        "essential": False,
        "sender_public_key": sender.public,
        "target_node": node["node_id"],
        "trigger_subjects": subjects,
        "hash": None,
    }


async def deploy(nc, node, name, source, subjects, environment=None, namespace="default"):
    """Uploads and deploys a function; gives back the answer's data."""
    digest = await upload(nc, name, source)
    body = deploy_request(node, name, digest, subjects, environment)
    return await data_of(nc, f"$NEX.DEPLOY.{namespace}.{node['node_id']}", body)
