"""NATS keys in plain Python: Ed25519 signatures (RFC 8032) for claims, and the box of NaCl (X25519, XSalsa20, Poly1305)
for sealed environments. Written after the specifications, so that a node which understands it understands every other
implementation; and in plain Python, so that the tests need no compiled packages. Slow and not constant-time: for tests.
"""

import base64
import hashlib
import os
import struct

# Version bytes: the first letter of a key's text form.
SEED, ACCOUNT, CURVE = 18 << 3, 0, 23 << 3

P = 2**255 - 19


# --- Text form --------------------------------------------------------------------------------------------------------


def checksum(data):
    """CRC-16 (XMODEM), which ends every key."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc.to_bytes(2, "little")


def encode(kind, key):
    raw = bytes([kind]) + key
    return base64.b32encode(raw + checksum(raw)).decode().rstrip("=")


def decode(kind, text):
    raw = base64.b32decode(text + "=" * (-len(text) % 8))
    assert checksum(raw[:-2]) == raw[-2:], f"checksum of {text}"
    assert raw[0] == kind, f"{text} is another kind of key"
    return raw[1:-2]


def decode_seed(kind, text):
    """The 32 secret bytes of a seed; its kind is spread over the first two bytes."""
    raw = base64.b32decode(text + "=" * (-len(text) % 8))
    assert checksum(raw[:-2]) == raw[-2:], "checksum of a seed"
    assert raw[0] & 0xF8 == SEED and (raw[0] & 7) << 5 | raw[1] >> 3 == kind, "another kind of seed"
    return raw[2:-2]


# --- Ed25519, RFC 8032 section 5.1 ------------------------------------------------------------------------------------

D = -121665 * pow(121666, -1, P) % P
ORDER = 2**252 + 27742317777372353535851937790883648493
BASE_Y = 4 * pow(5, -1, P) % P
BASE_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
BASE = (BASE_X, BASE_Y, 1, BASE_X * BASE_Y % P)


def add(p, q):
    a = (p[1] - p[0]) * (q[1] - q[0]) % P
    b = (p[1] + p[0]) * (q[1] + q[0]) % P
    c = 2 * p[3] * q[3] * D % P
    d = 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def multiply(scalar, point):
    result = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def compress(point):
    inverse = pow(point[2], -1, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def clamp(key):
    scalar = int.from_bytes(key, "little")
    return scalar & ~(1 << 255) & ~7 | 1 << 254


class AccountKey:
    """Signs claims."""

    def __init__(self, seed):
        digest = hashlib.sha512(decode_seed(ACCOUNT, seed)).digest()
        self.scalar, self.prefix = clamp(digest[:32]), digest[32:]
        self.raw_public = compress(multiply(self.scalar, BASE))
        self.public = encode(ACCOUNT, self.raw_public)

    def sign(self, message):
        def number(*parts):
            return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % ORDER

        r = number(self.prefix, message)
        commitment = compress(multiply(r, BASE))
        s = (r + number(commitment, self.raw_public, message) * self.scalar) % ORDER
        return commitment + s.to_bytes(32, "little")


# --- X25519, RFC 7748 section 5 ---------------------------------------------------------------------------------------


def x25519(private, public):
    scalar = clamp(private)
    x1 = int.from_bytes(public, "little") % 2**255
    x2, z2, x3, z3 = 1, 0, x1, 1
    swap = 0
    for bit in reversed(range(255)):
        now = scalar >> bit & 1
        if swap ^ now:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = now
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb = d * a % P, c * b % P
        x3, z3 = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        aa, bb = a * a % P, b * b % P
        e = aa - bb
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, -1, P) % P).to_bytes(32, "little")


# --- XSalsa20 and Poly1305, as NaCl's `crypto_box` puts them together -------------------------------------------------

SIGMA = struct.unpack("<4I", b"expand 32-byte k")


def salsa20_rounds(key, nonce):
    """The state before and after 20 rounds."""
    k, n = struct.unpack("<8I", key), struct.unpack("<4I", nonce)
    state = [SIGMA[0], *k[:4], SIGMA[1], *n, SIGMA[2], *k[4:], SIGMA[3]]
    x = state[:]

    def quarter(a, b, c, d):
        for target, left, right, bits in ((b, a, d, 7), (c, b, a, 9), (d, c, b, 13), (a, d, c, 18)):
            total = (x[left] + x[right]) & 0xFFFFFFFF
            x[target] ^= (total << bits | total >> 32 - bits) & 0xFFFFFFFF

    for _ in range(10):
        for column in ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11)):
            quarter(*column)
        for row in ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14)):
            quarter(*row)
    return state, x


def hsalsa20(key, nonce):
    _, x = salsa20_rounds(key, nonce)
    return struct.pack("<8I", *(x[i] for i in (0, 5, 10, 15, 6, 7, 8, 9)))


def salsa20(key, nonce, length):
    stream = b""
    while len(stream) < length:
        state, x = salsa20_rounds(key, nonce + struct.pack("<Q", len(stream) // 64))
        stream += struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(state, x)))
    return stream[:length]


def poly1305(key, message):
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for start in range(0, len(message), 16):
        total = (total + int.from_bytes(message[start : start + 16] + b"\1", "little")) * r % (2**130 - 5)
    return ((total + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


def box(private, public, nonce, plaintext):
    shared = hsalsa20(x25519(private, public), bytes(16))
    key = hsalsa20(shared, nonce[:16])
    stream = salsa20(key, nonce[16:], 32 + len(plaintext))
    ciphertext = bytes(a ^ b for a, b in zip(plaintext, stream[32:]))
    return poly1305(stream[:32], ciphertext) + ciphertext


class CurveKey:
    """An xkey: seals for one recipient."""

    def __init__(self, seed):
        self.private = decode_seed(CURVE, seed)
        self.public = encode(CURVE, x25519(self.private, (9).to_bytes(32, "little")))

    def seal(self, plaintext, recipient):
        nonce = os.urandom(24)
        return b"xkv1" + nonce + box(self.private, decode(CURVE, recipient), nonce, plaintext)


# --- What libsodium gives, so that a mistake above is not taken for one of the node -----------------------------------


def check_against_libsodium():
    key = AccountKey(base64.b32encode(SEED_OF_ZEROS).decode().rstrip("="))
    assert key.sign(b"").hex() == (
        "8f895b3cafe2c9506039d0e2a66382568004674fe8d237785092e40d6aaf483e"
        "4fc60168705f31f101596138ce21aa357c0d32a064f423dc3ee4aa3abf53f803"
    )
    public = x25519(bytes(range(32, 64)), (9).to_bytes(32, "little"))
    assert public.hex() == "358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254"
    sealed = box(bytes(range(32)), public, bytes(range(24)), b"vector")
    assert sealed.hex() == "c86bd22ac704c572d5722b4000b38edc15b7dc44130a"


SEED_OF_ZEROS = bytes([SEED, 0]) + bytes(32)
SEED_OF_ZEROS += checksum(SEED_OF_ZEROS)
check_against_libsodium()
