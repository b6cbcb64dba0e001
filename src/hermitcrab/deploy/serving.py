"""What Docker and Kubernetes are told alike of `crab serve`: its command, its user, its needs. Names from a package are a
stranger's words: where a system wants an identifier they become one (`slug`), elsewhere they are values, quoted by the writer.
"""

from __future__ import annotations

import hashlib
import re
from importlib.metadata import version
from typing import Any

import yaml

from hermitcrab.digest import short
from hermitcrab.errors import UsageError
from hermitcrab.lineage.card import plain
from hermitcrab.packaged import Packaged

PORT = 8000
USER = 10001  # no user of the image and of no common host: a number, so that `runAsNonRoot` can be checked
KEY_VARIABLE = "CRAB_API_KEY"
KEY_FILE = "signer.pub.pem"  # beside the manifests, where export was given the signer's key
MODEL_FOLDER, KEY_FOLDER = "/model", "/keys"
DRAIN = 60  # seconds from the signal to the end by force: answers in the making may take that long
RUNTIME = 1 << 30  # bytes that Python and an engine take without a model
SPARE = 2  # times its weights: as they are read, and for the cache of tokens
LIVE = "/health/live"
READY = "/health/ready"
IMAGE = re.compile(  # as the distribution specification has it: name, then a tag or a digest
    r"(?=.{1,255}$)(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::\d{1,5})?/)?[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
    r"(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*(?::([\w][\w.-]{0,127})|@sha256:[0-9a-f]{64})", re.ASCII
)  # fmt: skip
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123, one label


def slug(name: str, longest: int = 40) -> str:
    """An identifier of a name (RFC 1035: letters, digits, dashes); where something was lost, with a digest of the name."""
    made = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:longest].strip("-")
    if made and made == name and made[0].isalpha():
        return made
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{made}-{mark}" if made and made[0].isalpha() else f"model-{mark}"


def image_of(asked: str | None) -> str:
    """The server's image.

    Raises:
        UsageError: no name of an image, or one that may be another image tomorrow.
    """
    if asked is None:
        return f"hermitcrab:{re.sub(r'[^0-9A-Za-z_.-]', '-', version('hermitcrab'))}"
    found = IMAGE.fullmatch(asked)
    if not found or found[1] == "latest":
        raise UsageError(
            f"--image: expected NAME:TAG or NAME@sha256:DIGEST, and no `latest`, which means another image tomorrow. "
            f"Received: {plain(asked, 80)}"
        )
    return asked


def command(package: Packaged, signer: bool) -> list[str]:
    """Arguments of `crab` in the container."""
    return [
        "serve", MODEL_FOLDER, "--host", "0.0.0.0", "--port", str(PORT), "--api-key", f"env:{KEY_VARIABLE}",
        *(["--key", f"{KEY_FOLDER}/{KEY_FILE}"] if signer else []),
        *([] if package.verified else ["--unverified"]),
    ]  # fmt: skip


def about(package: Packaged) -> dict[str, str]:
    """What the labels or annotations say of the package; values of any characters but control characters."""
    signature = next((file.sha256 for file in package.files if file.path == "model.sig"), None)
    told = {"package": package.name, "task": package.record.get("task"), "license": package.record.get("license")}
    return {
        **{f"hermitcrab/{field}": plain(value, 200) for field, value in told.items() if value},
        **({"hermitcrab/signature": f"sha256:{short(signature)}"} if signature else {}),
    }


def memory(package: Packaged) -> int:
    """Bytes that a server may take: an estimate from the size of the weights, in whole units of 256 MiB.

    Raises:
        UsageError: the folder holds no weights.
    """
    weights = [file.size for file in package.files if "/" not in file.path and file.path.endswith(".safetensors")]
    weights = weights or [file.size for file in package.files if file.path.endswith((".gguf", ".onnx", ".safetensors"))]
    if not weights:
        raise UsageError(f"{package.path}: holds no weights, so there is nothing to serve")
    unit = 256 << 20
    return -(-(RUNTIME + SPARE * sum(weights)) // unit) * unit


def as_yaml(*documents: Any) -> bytes:
    """YAML by the library alone, so that no value can become structure; no aliases, keys in the order given."""

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    text = yaml.dump_all(documents, Dumper=Plain, sort_keys=False, allow_unicode=True, width=110)
    return text.encode()
