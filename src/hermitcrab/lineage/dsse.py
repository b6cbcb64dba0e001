"""DSSE envelopes around in-toto statements: one claim, one line of canonical JSON, one ECDSA P-256 signature.

    {"payload": base64, "payloadType": "application/vnd.in-toto+json", "signatures": [{"keyid": …, "sig": base64}]}

Envelope and payload are in canonical form (RFC 8785), and reading checks it by writing again: a claim has exactly one
spelling, so no byte of it can change unseen. DSSE: https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hermitcrab.digest import canonical_json
from hermitcrab.errors import HermitcrabError
from hermitcrab.lineage.keys import fingerprint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # SEC 2, section 2.4.2
SAFE_INTEGER = 2**53 - 1


@dataclass(frozen=True)
class Envelope:
    statement: dict[str, Any]
    payload: bytes
    signature: bytes
    keyid: str


def pae(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Pre-authentication encoding: what is really signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign_statement(statement: dict[str, Any], key: EllipticCurvePrivateKey) -> bytes:
    """The envelope of a statement, as one line without its end.

    Raises:
        HermitcrabError: where the statement holds a number that JSON cannot carry exactly.
    """
    try:
        payload = canonical_json(statement)
    except ValueError as error:
        raise HermitcrabError(f"a statement cannot be written in canonical JSON: {error}") from error
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {"keyid": fingerprint(key.public_key()), "sig": base64.b64encode(_sign(key, pae(payload))).decode()}
            ],
        }
    )


def _sign(key: EllipticCurvePrivateKey, data: bytes) -> bytes:
    """ECDSA with SHA-256; deterministic (RFC 6979) where the installed OpenSSL can."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        return low_s(key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    except UnsupportedAlgorithm:
        return low_s(key.sign(data, ec.ECDSA(hashes.SHA256())))


def low_s(signature: bytes) -> bytes:
    """The one of the two valid spellings (r, s) and (r, n - s) whose s is the smaller (as BIP 62 asks), in DER."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

    r, s = decode_dss_signature(signature)
    return encode_dss_signature(r, min(s, P256_ORDER - s))


def signature_holds(key: EllipticCurvePublicKey, signature: bytes, payload: bytes) -> bool:
    """Whether `signature` is the one of `key` over that payload: valid, in DER, and of the two valid ones that with low s."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key.verify(signature, pae(payload), ec.ECDSA(hashes.SHA256()))
        return low_s(signature) == signature
    except (InvalidSignature, ValueError):
        return False


def open_envelope(line: bytes) -> Envelope:
    """An envelope from its one line. The signature is not checked here.

    Raises:
        HermitcrabError: for everything but the one canonical spelling.
    """
    value = parse_canonical(line)
    match value:
        case {"payload": str(coded), "payloadType": str(kind), "signatures": [{"keyid": str(keyid), "sig": str(sig)}]}:
            if set(value) != {"payload", "payloadType", "signatures"} or set(value["signatures"][0]) != {
                "keyid",
                "sig",
            }:
                raise HermitcrabError("the envelope has keys that do not belong there")
        case _:
            raise HermitcrabError("not a DSSE envelope with payload, payloadType and one signature")
    if kind != PAYLOAD_TYPE:
        raise HermitcrabError(f"expected the payload type {PAYLOAD_TYPE}. Received: {kind[:80]!r}")
    payload = decode(coded)
    statement = parse_canonical(payload)
    if not isinstance(statement, dict):
        raise HermitcrabError("the payload is no statement")
    return Envelope(statement, payload, decode(sig), keyid)


def parse_canonical(data: bytes) -> Any:
    """A JSON value whose bytes are exactly its canonical form.

    Raises:
        HermitcrabError: where they are not JSON, or JSON in another spelling.
    """
    try:
        value = json.loads(data.decode(), parse_int=_number)
        canonical = canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise HermitcrabError(f"not readable as canonical JSON: {type(error).__name__}") from error
    if canonical != data:
        raise HermitcrabError("not in canonical form (RFC 8785)")
    return value


def _number(text: str) -> int | float:
    """Canonical JSON writes 1e20 as 100000000000000000000: beyond 2**53 a number without a point is a double."""
    if len(text) <= 17 and abs(int(text)) <= SAFE_INTEGER:
        return int(text)
    return float(text)


def decode(text: str) -> bytes:
    """base64 with nothing to spare: padding, unused bits and line ends included.

    Raises:
        HermitcrabError: for another spelling of the same bytes.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise HermitcrabError("not valid base64") from error
    if base64.b64encode(data).decode() != text:
        raise HermitcrabError("base64 with stray bits or padding")
    return data
