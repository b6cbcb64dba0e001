"""Verify a package: every digest, every signature, every link of the chain, and whether card, bill and claims agree.

What a folder holds was written by others. Nothing of it is run, no link is followed, nothing outside is opened, and
whatever is malformed is a failed check that names its file. All failures are listed, not the first alone.

    files      what lies in the folder, hashed once
    signature  model.sig in its one spelling, its signature, its list against the files
    claims     claims.jsonl line by line
    chain.py   from raw bytes to package; parity; licenses; card, bill and claims
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.digest import digest_file, short
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.lineage import bundle, dsse
from hermitcrab.lineage.card import plain
from hermitcrab.lineage.keys import fingerprint, load_public, parse_public, public_pem
from hermitcrab.lineage.sign import CLAIMS, SIGNER
from hermitcrab.progress import progress

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

LARGEST = 64 << 20  # bytes of a file that is read whole
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError, RecursionError, OSError)


@dataclass(frozen=True)
class Check:
    check: str
    ok: bool
    file: str | None
    message: str
    contradiction: bool = False
    """A claim that other evidence contradicts, not mere damage."""

    def as_json(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "ok": self.ok,
            "file": self.file,
            "message": self.message,
            "contradiction": self.contradiction,
        }


@dataclass
class Verification:
    """What was checked. `authenticated`: the signature is that of the key that was given."""

    checks: list[Check] = field(default_factory=list)
    authenticated: bool = False
    signer: str | None = None
    """Fingerprint of the key that the signature holds under."""

    @property
    def ok(self) -> bool:
        return bool(self.checks) and not self.failures

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if not check.ok]

    @property
    def contradiction(self) -> bool:
        return any(check.contradiction for check in self.failures)

    @property
    def summary(self) -> str:
        if not self.ok:
            return f"not verified: {len(self.failures)} of {len(self.checks)} checks failed"
        if self.authenticated:
            return f"intact, signed by the given key {self.signer}"
        return f"intact; signer not authenticated (signed by {self.signer}; --key says whose signature it should be)"

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "authenticated": self.authenticated,
            "signer": self.signer,
            "contradiction": self.contradiction,
            "summary": self.summary,
            "checks": [check.as_json() for check in self.checks],
            "failures": [check.as_json() for check in self.failures],
        }

    def fail(self, check: str, file: str | None, message: str, contradiction: bool = False) -> None:
        self.checks.append(Check(check, False, plain(file) if file else None, plain(message, 1000), contradiction))

    @contextmanager
    def checking(self, check: str, file: str, done: str) -> Iterator[None]:
        """One check: passed with the message `done` unless something fails in it; what is malformed names `file`."""
        before = len(self.failures)
        try:
            yield
        except HermitcrabError as error:
            self.fail(check, file, f"{file}: {error}")
        except MALFORMED as error:
            what = f"{error.strerror}" if isinstance(error, OSError) else f"{type(error).__name__} {plain(error, 80)}"
            self.fail(check, file, f"{file}: not of the expected form ({what})")
        if len(self.failures) == before:
            self.checks.append(Check(check, True, file, done))


def of_a_hub(name: str) -> bool:
    """Whether a hub or its download tool puts a file of this name beside what it hands out; nothing of ours reads one."""
    return name == ".gitattributes" or f"{name}/".startswith(".cache/huggingface/")


@dataclass
class Folder:
    """A package folder: `{path: sha256 hex}` of its regular files, and those whose bytes are not the signed ones."""

    path: Path
    files: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    """Likewise of what a hub put there: covered by the signature where it was signed, else told and left out."""
    changed: set[str] = field(default_factory=set)
    doubted: bool = False
    """The signature or a claim does not hold, so that nothing can be held against them."""

    def sound(self, name: str) -> bool:
        """Whether a file that says something else than the claims contradicts them, and is not merely damaged."""
        return not self.doubted and name not in self.changed

    def read(self, name: str) -> bytes:
        """A small file, whole.

        Raises:
            HermitcrabError: where it is missing or far too large.
        """
        if name not in self.files:
            raise HermitcrabError("the file is missing")
        size = (self.path / name).stat().st_size
        if size > LARGEST:
            raise HermitcrabError(f"{size:,} bytes are too many for what this file should be")
        return (self.path / name).read_bytes()

    def json(self, name: str) -> Any:
        return json.loads(self.read(name).decode())


def verify(folder: str | Path, key: str | Path | None = None) -> Verification:
    """Check a package, or an export of one.

    Args:
        folder: the package; of an export its folder, or a file in it.
        key: the public key (PEM) that it should be signed by; without one the signer is not authenticated.

    Raises:
        UsageError: where `folder` is no folder, or `key` no public key. What the folder holds never raises.
    """
    from hermitcrab.lineage.chain import check_chain
    from hermitcrab.lineage.exported import check_export, is_export

    path = Path(folder)
    if path.is_file() and (path.parent / "hermitcrab.json").is_file():
        path = path.parent  # a file of an export: what vouches for it lies beside it
    if not path.is_dir():
        raise UsageError(
            f"{path}: {'not a folder' if path.exists() else 'no such folder'}; expected the folder of a package"
        )
    expected = load_public(key) if key is not None else None
    result, here = Verification(), Folder(path)
    _hash_files(result, here)
    if not here.files:
        result.fail("signed", None, f"{path.name}: unsigned: the folder holds no file, so there is nothing to verify")
        return result
    signer = _signer(result, here)
    _signature(result, here, signer, expected)
    claims = _claims(result, here, signer or expected)
    (check_export if is_export(here) else check_chain)(result, here, claims)
    return result


def entries(folder: Path) -> Iterator[tuple[str, os.stat_result | OSError, bool]]:
    """All that lies below a folder, links not followed: path, what `lstat` says or why it cannot be read, whether it is an
    empty folder. A stack and no recursion: folders in folders a thousand deep are no reason to fall over.
    """
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            names = sorted(os.listdir(os.path.join(folder, inside)))
        except OSError as error:
            yield inside or ".", error, False
            continue
        for name in names:
            path = f"{inside}/{name}" if inside else name
            try:
                info = os.lstat(os.path.join(folder, path))
                empty = stat.S_ISDIR(info.st_mode) and not os.listdir(os.path.join(folder, path))
            except OSError as error:
                yield path, error, False
                continue
            yield path, info, empty
            if stat.S_ISDIR(info.st_mode):
                waiting.append(path)


def _hash_files(result: Verification, here: Folder) -> None:
    """Hash every regular file. Links, pipes and the like are failures, and are never opened."""
    names: list[tuple[str, int]] = []
    for name, info, empty in entries(here.path):
        if isinstance(info, OSError):
            result.fail("files", name, f"{name}: cannot be read: {info.strerror}")
        elif empty and not of_a_hub(name):
            result.fail("files", name, f"{name}: extra: an empty folder that was not signed")
        elif stat.S_ISREG(info.st_mode):
            names.append((name, info.st_size))
        elif stat.S_ISLNK(info.st_mode):
            result.fail("files", name, f"{name}: a symbolic link; a package holds files, not ways to other places")
        elif not stat.S_ISDIR(info.st_mode):
            result.fail("files", name, f"{name}: neither file nor folder")
    with progress("verify", total=sum(size for _, size in names) / 1e6, unit="MB") as bar:
        for name, _ in sorted(names):
            try:
                digest = digest_file(here.path / name, seen=lambda count: bar.add(count / 1e6))
                (here.beside if of_a_hub(name) else here.files)[name] = digest.removeprefix("sha256:")
            except OSError as error:
                result.fail("files", name, f"{name}: cannot be read: {error.strerror}")


def _signer(result: Verification, here: Folder) -> EllipticCurvePublicKey | None:
    if SIGNER not in here.files and bundle.NAME not in here.files:
        return None  # unsigned, which is said once
    with result.checking("signer", SIGNER, "the signer's public key"):
        data = here.read(SIGNER)
        try:
            key = parse_public(data, "the signer's key")
        except ValueError as error:
            raise HermitcrabError("no public key") from error
        if public_pem(key) != data:
            raise HermitcrabError("the public key is not in its one spelling; it was changed")
        return key
    return None


def _signature(
    result: Verification, here: Folder, signer: EllipticCurvePublicKey | None, expected: EllipticCurvePublicKey | None
) -> None:
    name = bundle.NAME
    if name not in here.files:
        said = "unsigned: there is no model.sig, so nothing says that these files are as they were made"
        result.fail("signed", name, f"{said}; a signed package has one (`package: {{sign: true}}`)")
        return
    signed = None
    with result.checking("canonical", name, "the signature file is in its one spelling"):
        data = here.read(name)
        signed = bundle.read_bundle(data)
        if not bundle.is_canonical(data, signed):
            raise HermitcrabError("not in the one spelling that hermitcrab writes; the signature file was changed")
        if (key := signer or expected) and signed.hint != bundle.key_hint(key):
            raise HermitcrabError(f"names another key than the one in {SIGNER}")
    if signed is not None:
        _hold(result, signed, signer, expected)
        with result.checking("files", name, f"{len(here.files):,} files, each as it was signed"):
            _compare(result, here, signed.files())


def _hold(
    result: Verification,
    signed: bundle.Bundle,
    signer: EllipticCurvePublicKey | None,
    expected: EllipticCurvePublicKey | None,
) -> None:
    """Under the key in the folder, and under the key that was given."""
    name = bundle.NAME
    with result.checking("signature", name, "the signature holds"):
        inside = signer is not None and dsse.signature_holds(signer, signed.signature, signed.payload)
        given = expected is not None and dsse.signature_holds(expected, signed.signature, signed.payload)
        if inside and signer is not None:
            result.signer = fingerprint(signer)
        if signer is not None and not inside:
            raise HermitcrabError(
                f"the signature does not hold under {SIGNER}; one of the two was changed after signing"
            )
        if signer is None and not given:
            raise HermitcrabError(f"the signature cannot be checked without a key in {SIGNER}")
    if expected is None:
        return
    with result.checking("key", name, f"signed by the given key {fingerprint(expected)}"):
        if given:
            result.authenticated, result.signer = True, fingerprint(expected)
        elif inside:
            raise HermitcrabError(f"wrong key: signed by {result.signer}, expected {fingerprint(expected)} (--key)")
        else:
            raise HermitcrabError(f"the signature does not hold under the given key {fingerprint(expected)}")


def _compare(result: Verification, here: Folder, signed: dict[str, str]) -> None:
    """The files of the folder against the signed list."""
    beside = {name: digest for name, digest in here.beside.items() if name in signed}
    found = {name: digest for name, digest in here.files.items() if name != bundle.NAME} | beside
    for name in sorted(here.beside.keys() - beside.keys())[:1]:
        count = len(here.beside) - len(beside)
        said = f"{name}: not signed: {count:,} such files were put here by a hub's download, and nothing reads them"
        result.checks.append(Check("hub", True, plain(name), plain(said, 1000)))
    told = {check.file for check in result.failures if check.check == "files"}
    for name in sorted(signed.keys() | found.keys()):
        if name not in found and plain(name) not in told:
            result.fail("files", name, f"{name}: missing: it was signed, and is not here")
        elif name not in signed:
            here.changed.add(name)
            result.fail("files", name, f"{name}: extra: it was not there when the package was signed")
        elif name in found and found[name] != signed[name]:
            here.changed.add(name)
            was, now = str(signed[name])[:12], short(found[name])
            result.fail("files", name, f"{name}: changed after signing: sha256 {was}… was signed, {now}… is here")


def _claims(result: Verification, here: Folder, key: EllipticCurvePublicKey | None) -> list[dict[str, Any]] | None:
    """The statements of claims.jsonl, or None where one of them cannot be read."""
    if CLAIMS not in here.files and bundle.NAME not in here.files:
        return None  # unsigned, which is said once
    statements: list[dict[str, Any]] = []
    whole = False
    with result.checking("claims", CLAIMS, "every claim is in its one spelling and signed"):
        *lines, end = here.read(CLAIMS).split(b"\n")
        if end or not lines:
            raise HermitcrabError("cut short: expected one claim a line, the last with its line end")
        whole = True
        for number, line in enumerate(lines, 1):
            try:
                envelope = dsse.open_envelope(line)
                statements.append(envelope.statement)
                _claim_holds(envelope, key)
            except HermitcrabError as error:
                whole = whole and len(statements) == number
                result.fail("claims", CLAIMS, f"{CLAIMS} line {number}: {error}")
    return statements if whole else None


def _claim_holds(envelope: dsse.Envelope, key: EllipticCurvePublicKey | None) -> None:
    if key is None:
        raise HermitcrabError(f"the claim cannot be checked without the key in {SIGNER}")
    if envelope.keyid != fingerprint(key):
        raise HermitcrabError(
            f"signed by another key than the package: {envelope.keyid[:80]}, expected {fingerprint(key)}"
        )
    if not dsse.signature_holds(key, envelope.signature, envelope.payload):
        raise HermitcrabError("edited: the claim is not what was signed")
