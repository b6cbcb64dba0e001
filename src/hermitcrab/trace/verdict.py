"""The verdict: a pure function of the evidence. No files, no printing, no weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hermitcrab.trace.exact import Group, bound
from hermitcrab.trace.null import Table

RELATED, NO_EVIDENCE, CANNOT_TELL = "related", "no-evidence", "cannot-tell"
EXPLANATIONS = [
    "both were made from a common ancestor, or the base from the suspect",
    "both started from the same initial seed or the same initial values",
    "parts were copied and frozen in both (an embedding, a teacher, an encoder)",
]
NEVER = [
    "distillation on answers alone leaves no trace in weights, so this test cannot see it",
    "independence cannot be proven: a related model can have been changed until nothing is left",
]


@dataclass
class Evidence:
    """What was measured for one base. `tests`: how many groups and bases the level is shared among."""

    groups: list[Group] = field(default_factory=list)
    deflated: list[Group] = field(default_factory=list)
    copies_same: int = 0
    copies_part: int = 0
    matrices: int = 0
    mean: float | None = None
    best: float | None = None
    channels: float | None = None
    bases: int = 1


@dataclass
class Levels:
    alpha: float = 1e-6
    mean: Table | None = None
    best: Table | None = None
    channels: Table | None = None


@dataclass
class Decision:
    verdict: str
    log10_p: float | None
    p_status: str
    why: str
    alpha: float


def judge(e: Evidence, levels: Levels) -> Decision:
    """Exact tests first, then numbers that are the same, then the aligned score against the table."""
    level = math.log10(levels.alpha)
    tests = [*e.groups, *e.deflated]
    exact = None
    if tests:
        top = min(tests, key=lambda g: g.log10_p)
        exact = min(0.0, top.log10_p + math.log10(len(tests) * e.bases))
        if exact <= level:
            return Decision(
                RELATED,
                exact,
                "exact",
                f"{top.what or top.name}: z = {top.z:.1f} over {top.units:,} signs",
                levels.alpha,
            )
    if e.copies_same or e.copies_part:
        count = (
            f"{e.copies_same} of {e.matrices} matrices are"
            if e.copies_same
            else f"rows of {e.copies_part} matrices are"
        )
        return Decision(
            RELATED,
            exact,
            "exact" if exact is not None else "none",
            f"{count} the same, number for number",
            levels.alpha,
        )
    aligned = _aligned(e, levels)
    if aligned is not None and aligned.verdict != NO_EVIDENCE:
        return aligned
    if exact is not None and (any(_could(g, level) for g in e.groups) or aligned is not None):
        return Decision(NO_EVIDENCE, exact, "exact", "nothing beyond chance in any test", levels.alpha)
    if aligned is not None:
        return aligned
    return Decision(CANNOT_TELL, exact, "exact" if exact is not None else "none",
                    "too few independent parts to reach the level, and no neurons to align", levels.alpha)  # fmt: skip


def _could(g: Group, level: float) -> bool:
    """Whether the group could have reached the level at all: z is at most the root of the number of signs."""
    return bound(math.sqrt(g.units)) <= level - 1


def _aligned(e: Evidence, levels: Levels) -> Decision | None:
    found = [
        (t.log10_p(s), s, t)
        for s, t in ((e.mean, levels.mean), (e.best, levels.best), (e.channels, levels.channels))
        if s is not None and t is not None
    ]
    if not found:
        return None
    p, score, table = min(found, key=lambda x: (x[0], x[2].guard - x[1]))
    p = min(0.0, p + math.log10(len(found) * e.bases))
    stated = 10 ** (table.floor + math.log10(len(found) * e.bases))
    for _, s, t in found:
        if s >= t.guard:
            why = f"{s:.0%} of the units match their like in both ways; at most {t.largest:.1%} in {len(t.scores):,} independent pairs"
            return Decision(RELATED, p, "conformal", why, stated)
    if score > table.largest:
        why = f"{score:.1%} of the hidden units match, more than in any independent pair ({table.largest:.1%}) but too few for a verdict"
        return Decision(CANNOT_TELL, p, "conformal", why, stated)
    return Decision(
        NO_EVIDENCE, p, "conformal", "aligned hidden units agree no more than those of independent models", stated
    )


@dataclass
class Result:
    """The answer for one base; `as_json` has the keys that `crab trace --json` promises."""

    base: str
    decision: Decision
    relation: str
    relations: list[str]
    direction: str
    because: str
    details: dict[str, Any]
    groups: list[dict[str, Any]]
    layer_map: list[dict[str, Any]]
    copies: dict[str, Any]
    assumptions: list[str]
    not_tested: list[str]
    seconds: float
    bytes_read: int
    aligned: dict[str, Any] | None = None
    sentence: str = ""

    @property
    def verdict(self) -> str:
        return self.decision.verdict

    @property
    def log10_p(self) -> float | None:
        return self.decision.log10_p

    def as_json(self) -> dict[str, Any]:
        d = self.decision
        return {
            "base": self.base, "verdict": d.verdict, "relation": self.relation, "relations": self.relations,
            "direction": self.direction, "because": self.because, "alpha": d.alpha,
            "log10_p": None if d.log10_p is None else round(d.log10_p, 3), "p_status": d.p_status, "why": d.why,
            "sentence": self.sentence, "groups": self.groups, "aligned": self.aligned, "layer_map": self.layer_map,
            "copies": self.copies, "details": self.details, "assumptions": self.assumptions, "not_tested": self.not_tested,
            "other_explanations": EXPLANATIONS if d.verdict == RELATED else [], "limits": NEVER,
            "seconds": round(self.seconds, 3), "bytes_read": self.bytes_read,
        }  # fmt: skip


@dataclass
class Verdict:
    """What `hermitcrab.trace` returns: one `Result` a base, in the order in which they were given."""

    suspect: str
    results: list[Result]

    @property
    def related(self) -> list[Result]:
        return [r for r in self.results if r.verdict == RELATED]

    def as_json(self) -> dict[str, Any]:
        return {"suspect": self.suspect, "results": [r.as_json() for r in self.results]}


def sentence(suspect: str, result: Result) -> str:
    """What a layman reads first."""
    base, d = result.base, result.decision
    if d.verdict == RELATED:
        kind = ", ".join(result.relations) or "related"
        chance = f" (p = 10^{d.log10_p:.0f}, {d.p_status})" if d.log10_p is not None and d.p_status != "none" else ""
        arrow = {
            "suspect from base": f"{suspect} was made from {base}",
            "base from suspect": f"{base} was made from {suspect}",
        }
        said = arrow.get(result.direction, "which of the two came first cannot be told from weights")
        return f"Not independent{chance}. Kind of relation: {kind}. Direction: {said}."
    if d.verdict == NO_EVIDENCE:
        return f"No evidence that {suspect} and {base} are related. This does not prove that they are independent."
    return f"Cannot tell: {d.why}."
