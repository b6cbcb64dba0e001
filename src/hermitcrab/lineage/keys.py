"""Signing keys: ECDSA P-256 in PEM (PKCS 8), what OpenSSF Model Signing's key method takes. Made and used offline.

The private key is read where something is signed and nowhere else: it is in no store, no record and no log. What
names a signer is the fingerprint, the sha256 of the public key (DER, SubjectPublicKeyInfo).
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hermitcrab.digest import digest_bytes
from hermitcrab.errors import UsageError
from hermitcrab.progress import say, warn
from hermitcrab.store import disk_errors, write_atomic

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

LARGEST = 1 << 16  # bytes of a key file


@dataclass(frozen=True)
class Key:
    """Where a key pair lies, and its name."""

    private: Path
    public: Path
    fingerprint: str


def keygen(path: str | Path) -> Key:
    """A new key pair: `path` (mode 0600) and the public key beside it as `.pub.pem`. Nothing is ever overwritten.

    Raises:
        UsageError: where one of the two files exists.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path = Path(path)
    public = public_path(path)
    for file in (path, public):
        if os.path.lexists(file):
            raise UsageError(f"{file}: exists already, and a key is never overwritten; choose another path")
    key = ec.generate_private_key(ec.SECP256R1())
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with disk_errors("cannot write the key"):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_new(path, data)
        write_atomic(public, public_pem(key.public_key()))
    return Key(path, public, fingerprint(key.public_key()))


def _write_new(path: Path, data: bytes) -> None:
    """Whole or not at all, readable by its owner alone from the first byte, and never over another file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(beside, path)
    except FileExistsError as error:
        raise UsageError(f"{path}: exists already, and a key is never overwritten; choose another path") from error
    finally:
        os.unlink(beside)


def public_path(path: Path) -> Path:
    """`signing-key.pem` → `signing-key.pub.pem`."""
    return path.with_name(path.name.removesuffix(".pem") + ".pub.pem")


def default_path() -> Path:
    """Where the user's own private key lies, or would."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".config") / "hermitcrab" / "signing-key.pem"


def default_key() -> Path:
    """The user's own private key, in the configuration folder; made on first use."""
    path = default_path()
    if not path.exists():
        try:
            say(f"made a signing key: {path}; give others its public half, {keygen(path).public}")
        except UsageError:
            if not path.exists():  # only the public half is there: not ours to replace
                raise
    return path


def load_private(path: str | Path) -> EllipticCurvePrivateKey:
    """An ECDSA P-256 private key from PEM.

    Raises:
        UsageError: where it is missing, encrypted, of another kind, or no key at all. No message holds any of its
        bytes.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    data = _read(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError:
        raise UsageError(f"{path}: the key has a password; expected a key without one") from None
    except (ValueError, UnsupportedAlgorithm):
        hint = "; this is a public key" if b"PUBLIC KEY" in data else ""
        raise UsageError(f"{path}: expected a private key in PEM (make one with `crab keygen`){hint}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UsageError(f"{path}: expected an ECDSA key on the curve P-256. Received: {_kind(key)}")
    if os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        warn(f"{path}: others on this machine may read this private key; run: chmod 600 {path}")
    return key


def load_public(path: str | Path) -> EllipticCurvePublicKey:
    """An ECDSA P-256 public key from PEM.

    Raises:
        UsageError: where it is missing, of another kind, or no public key.
    """
    return parse_public(_read(path), str(path))


def parse_public(data: bytes, name: str) -> EllipticCurvePublicKey:
    """As `load_public`, from bytes; `name` stands in messages."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        hint = "; this is a private key: keep it to yourself" if b"PRIVATE KEY" in data else ""
        raise UsageError(f"{name}: expected a public key in PEM{hint}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UsageError(f"{name}: expected an ECDSA key on the curve P-256. Received: {_kind(key)}")
    return key


def public_pem(key: EllipticCurvePublicKey) -> bytes:
    """The one PEM form of a public key."""
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: EllipticCurvePublicKey) -> str:
    """sha256 of the public key in DER (SubjectPublicKeyInfo, RFC 5480)."""
    from cryptography.hazmat.primitives import serialization

    return digest_bytes(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def _read(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(LARGEST)
    except OSError as error:
        reason = "no such key" if error.errno == errno.ENOENT else f"cannot be read: {error.strerror}"
        raise UsageError(f"{path}: {reason}") from error


def _kind(key: object) -> str:
    curve = getattr(key, "curve", None)
    return f"an elliptic-curve key on {curve.name}" if curve else type(key).__name__.lstrip("_")
