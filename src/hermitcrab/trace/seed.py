"""Seed attestation: the first draw of a model, made again from the committed seed, tested against its weights.

A run from scratch keeps its seed and a nonce with its facts; the record holds sha256(seed|nonce). Whoever is told both can
draw the same initial weights and test them, for training keeps much of the first draw. A match shows that this draw is in
these weights; since anyone can add a little of a draw of his own to weights that he found, the share (cosine) matters too.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.trace.model import read_json

LEAST_COSINE = 0.02


@dataclass
class Attestation:
    committed: bool
    log10_p: float
    cosine: float
    ok: bool
    text: str


def read_seed(told: str) -> tuple[int, str]:
    """Seed and nonce out of `SEED`, `SEED:NONCE`, or a JSON file that holds both.

    Raises:
        UsageError: it is none of them.
    """
    if Path(told).is_file():
        content = read_json(Path(told))
        content = content.get("init", content) if isinstance(content, dict) else {}
        seed, nonce = content.get("seed"), content.get("nonce", "")
        if type(seed) is int and isinstance(nonce, str):
            return seed, nonce
        raise UsageError(f"{told}: holds no `seed` and `nonce`")
    seed_text, _, nonce = told.partition(":")
    if not seed_text.isdecimal() or not seed_text.isascii() or len(seed_text) > 20:
        raise UsageError(f"expected SEED, SEED:NONCE or a JSON file with both. Received: {told[:60]}")
    return int(seed_text), nonce


def attest(package: Path, commitment: str, seed: int, nonce: str, draw: Any) -> Attestation:
    """Whether `seed` is the committed one and its draw is in the package's weights.

    `draw(folder, seed)` writes the initial weights as safetensors into a folder.
    """
    from hermitcrab.trace.tracing import trace

    said = "sha256:" + hashlib.sha256(f"{seed}|{nonce}".encode()).hexdigest()
    if said != commitment:
        return Attestation(
            False, 0.0, 0.0, False, f"the seed is not the committed one: {said[:19]}…, recorded {commitment[:19]}…"
        )
    weights = package / "model.safetensors"
    with tempfile.TemporaryDirectory(prefix="crab-seed-") as folder:
        draw(Path(folder), seed)
        result = trace(weights, [folder]).results[0]
    exact = [g for g in result.groups if g["status"] == "exact"]
    if not exact:
        raise HermitcrabError(f"{package}: no exact test could be made of the initial draw")
    cosine = max(float(g["cosine"]) for g in exact)
    p = result.log10_p or 0.0
    ok = result.verdict == "related" and result.decision.p_status == "exact" and cosine >= LEAST_COSINE
    text = f"the initial draw of the committed seed is {'in' if ok else 'not in'} these weights (log10 p = {p:.1f}, cosine {cosine:.3f})"
    return Attestation(True, p, cosine, ok, text)
