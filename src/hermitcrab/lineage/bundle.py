"""`model.sig`: the Sigstore bundle of OpenSSF Model Signing (v1.0, key method) in one canonical spelling.

The library's own reader forgives spaces, key order, padding and more, as it should. Here a signature file has exactly
one form, RFC 8785 of the five things that vary, so that a changed bit of the signature file itself is seen too.
Format: https://github.com/ossf/model-signing-spec
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hermitcrab.digest import canonical_json
from hermitcrab.errors import HermitcrabError
from hermitcrab.lineage.dsse import PAYLOAD_TYPE, decode
from hermitcrab.lineage.keys import public_pem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

NAME = "model.sig"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
SERIALIZATION = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [NAME]}


@dataclass(frozen=True)
class Bundle:
    payload: bytes
    signature: bytes
    hint: str
    """sha256 (hex) of the public key's PEM."""

    def as_bytes(self) -> bytes:
        """The one spelling."""
        return canonical_json(
            {
                "mediaType": MEDIA_TYPE,
                "verificationMaterial": {"publicKey": {"hint": self.hint}, "tlogEntries": []},
                "dsseEnvelope": {
                    "payload": base64.b64encode(self.payload).decode(),
                    "payloadType": PAYLOAD_TYPE,
                    "signatures": [{"keyid": "", "sig": base64.b64encode(self.signature).decode()}],
                },
            }
        )

    def files(self) -> dict[str, str]:
        """What was signed: `{path: sha256 hex}`.

        Raises:
            HermitcrabError: where the payload is no statement of Model Signing about every file but the signature.
        """
        try:
            statement = json.loads(self.payload)
            resources = statement["predicate"]["resources"]
            files = {entry["name"]: entry["digest"] for entry in resources if entry["algorithm"] == "sha256"}
            root = hashlib.sha256(b"".join(bytes.fromhex(entry["digest"]) for entry in resources)).hexdigest()
            described = (statement["_type"], statement["predicateType"], statement["predicate"]["serialization"])
            subjects = [subject["digest"] for subject in statement["subject"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise HermitcrabError("the signed payload is no statement of OpenSSF Model Signing") from error
        if described != (STATEMENT_TYPE, PREDICATE_TYPE, SERIALIZATION):
            raise HermitcrabError(
                "the signature does not cover every file by its sha256 with nothing ignored but itself. "
                f"Received: {str(described[2])[:200]}"
            )
        if (
            len(files) != len(resources)
            or not all(isinstance(name, str) for name in files)
            or subjects != [{"sha256": root}]
        ):
            raise HermitcrabError("the signed list of files does not agree with its own digest")
        return files


def read_bundle(data: bytes) -> Bundle:
    """A bundle in any spelling.

    Raises:
        HermitcrabError: where the parts are not there.
    """
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise HermitcrabError("it is no Sigstore bundle: not readable as JSON") from error
    match value:
        case {
            "verificationMaterial": {"publicKey": {"hint": str(hint)}},
            "dsseEnvelope": {"payload": str(payload), "signatures": [{"sig": str(signature)}]},
        }:
            return Bundle(decode(payload), decode(signature), hint)
    raise HermitcrabError("it is no Sigstore bundle with a key hint, a payload and one signature")


def key_hint(key: EllipticCurvePublicKey) -> str:
    """How a bundle names its key: sha256 (hex) of the PEM."""
    return hashlib.sha256(public_pem(key)).hexdigest()


def is_canonical(data: bytes, bundle: Bundle) -> bool:
    try:
        return bundle.as_bytes() == data
    except ValueError:  # a hint that is no valid Unicode
        return False
