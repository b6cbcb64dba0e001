"""Does this model descend from that one? From weights alone, with a p-value.

    hermitcrab.trace("suspect", ["base", "other"]).results[0].verdict   # related, no-evidence or cannot-tell

    structure.py model.py   which tensor does what; matrices read a few rows at a time
    digests.py              Tier 0: the same numbers in any order, layout or type
    exact.py generic.py     Tier 1: exact tests on signs and swaps (kernels.py, compare.py: the sums that they are made of)
    aligned.py depth.py     Tier 2: neurons (neurons.py) matched twice, layers matched; null.py: the table of independent models
    blind.py                the residual map without vocabulary; chain.py: hidden units of models without blocks
    mapping.py              a suspect in a base's coordinates; what is left of it once the base is taken out
    relation.py verdict.py  what kind, and the verdict: pure functions
    tracing.py              one suspect against its bases
    sketch.py tree.py claims.py seed.py   small files to trace by; families; declared parents; initial draws
    terminal.py page.py     for people

The module itself can be called: `hermitcrab.trace(suspect, bases)` is `hermitcrab.trace.tracing.trace`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hermitcrab.trace.verdict import Result, Verdict

__all__ = ["Result", "Verdict", "trace"]


class _Callable(ModuleType):
    def __call__(self, suspect: Any, bases: Any, **more: Any) -> Verdict:
        """See `hermitcrab.trace.tracing.trace`. `bases`: one path or several."""
        from hermitcrab.trace.tracing import trace

        return trace(
            suspect, [bases] if isinstance(bases, str) or hasattr(bases, "__fspath__") else list(bases), **more
        )


def __getattr__(name: str) -> Any:
    if name == "trace":
        from hermitcrab.trace.tracing import trace

        return trace
    if name in ("Result", "Verdict"):
        from hermitcrab.trace import verdict

        return getattr(verdict, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


sys.modules[__name__].__class__ = _Callable
