"""What a model's own record or card declares as its base, held against the weights.

Declared are `base` in a package's `hermitcrab.json` and `base_model` in the front matter of a card. A declared parent must be
at hand to be tested: beside the model, in the store (`--store`), or given (`crab trace --claim MODEL BASE`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermitcrab.errors import HermitcrabError
from hermitcrab.trace.model import read_json
from hermitcrab.trace.verdict import NO_EVIDENCE, RELATED, Result

LARGEST_CARD = 1 << 20


@dataclass
class Claim:
    """`name`: what is declared, `where`: the file that declares it; `path` where the record says it lies."""

    name: str
    where: str
    path: str | None = None
    sha256: str | None = None
    scratch: bool = False


def declared(model: str | Path) -> list[Claim]:
    """The parents that a model folder declares; empty where it declares none."""
    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    found: list[Claim] = []
    record = read_json(folder / "hermitcrab.json")
    base = record.get("base") if isinstance(record, dict) else None
    if isinstance(base, dict) and isinstance(base.get("name"), str):
        uri = base.get("uri")
        files = base.get("files")
        single = files[0] if isinstance(files, list) and len(files) == 1 and isinstance(files[0], dict) else {}
        digest = single["sha256"] if isinstance(single.get("sha256"), str) else None
        found.append(
            Claim(
                base["name"],
                "hermitcrab.json",
                uri if isinstance(uri, str) else None,
                digest,
                base.get("kind") == "scratch",
            )
        )
        return found
    for name in _front_matter(folder / "README.md"):
        found.append(Claim(name, "README.md"))
    return found


def _front_matter(path: Path) -> list[str]:
    """`base_model` of a card: a text or a list of texts."""
    import yaml

    if not path.is_file() or path.is_symlink() or path.stat().st_size > LARGEST_CARD:
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return []
    try:
        told = yaml.safe_load(text[4 : text.index("\n---", 4) + 1])
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise HermitcrabError(f"{path}: its front matter is no YAML ({type(error).__name__})") from error
    names = told.get("base_model") if isinstance(told, dict) else None
    names = [names] if isinstance(names, str) else names if isinstance(names, list) else []
    return [n for n in names if isinstance(n, str) and n]


def check(model: str | Path, given: list[str], resolve: Any) -> tuple[dict[str, Any], int]:
    """Test every declared parent. Exit status 3 where a declared parent shows no relation, or an undeclared one given does.

    `resolve(claim)`: the path of a declared parent, or None where it is not at hand.

    Raises:
        HermitcrabError: nothing is declared and nothing given, or no declared parent is at hand.
    """
    from hermitcrab.trace.tracing import trace

    claims = declared(model)
    if not claims and not given:
        raise HermitcrabError(
            f"{model}: declares no base model (no `base` in hermitcrab.json, no `base_model` in README.md); give the base to test"
        )
    places: list[tuple[Claim | None, str]] = []
    absent: list[str] = []
    for i, claim in enumerate(claims):
        if claim.scratch:
            continue
        place = (
            given[i] if i < len(given) and len(given) >= len([c for c in claims if not c.scratch]) else resolve(claim)
        )
        if place is None:
            absent.append(claim.name)
        else:
            places.append((claim, str(place)))
    places += [(None, g) for g in given if g not in [p for _, p in places]]
    if not places and absent:
        raise HermitcrabError(
            f"{model}: declares {', '.join(absent)}, which is not at hand; give its path: crab trace --claim {model} BASE"
        )
    if not places:
        raise HermitcrabError(
            f"{model}: says that it was trained from scratch, which weights alone can contradict but not confirm; give a base to test"
        )
    verdict = trace(model, [p for _, p in places])
    rows = [_judged(claim, result, claims) for (claim, _), result in zip(places, verdict.results, strict=True)]
    status = 3 if any(r["contradicted"] for r in rows) else 0
    told = {"suspect": str(model), "declared": [c.name for c in claims], "not_at_hand": absent, "claims": rows, "contradicted": status == 3,
            "results": verdict.as_json()["results"]}  # fmt: skip
    return told, status


def _judged(claim: Claim | None, result: Result, claims: list[Claim]) -> dict[str, Any]:
    contradicted = result.verdict == NO_EVIDENCE if claim is not None else result.verdict == RELATED
    if claim is not None:
        said = {
            "related": "the weights agree",
            "no-evidence": "the weights show no relation at all",
            "cannot-tell": "the weights cannot tell",
        }
        text = f"declared base {claim.name} ({claim.where}): {said[result.verdict]}"
    else:
        what = "from scratch" if any(c.scratch for c in claims) else ", ".join(c.name for c in claims) or "no base"
        text = f"declared {what}; {result.base} was not declared, and is {'not independent' if contradicted else 'not shown to be related'}"
    return {
        "declared": claim.name if claim else None,
        "base": result.base,
        "verdict": result.verdict,
        "contradicted": contradicted,
        "text": text,
    }
