"""Whether compiling is kept is decided by what was measured, and told."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hermitcrab.train import plan as plans
from hermitcrab.train.plan import Plan, try_compile


class Work:
    """A micro-batch whose CPU time is what the test says: `seconds` until compiled, then once `compiling`, then `fast`."""

    def __init__(self, monkeypatch, seconds: float, compiling: float, fast: float):
        self.clock, self.seconds, self.later = 0.0, seconds, [compiling]
        self.fast, self.compiled = fast, False
        monkeypatch.setattr(plans, "process_cpu", lambda: self.clock)

    def batch(self) -> None:
        if not self.compiled:
            self.clock += self.seconds
        else:
            self.clock += self.later.pop() if self.later else self.fast

    def compile(self) -> None:
        self.compiled = True


def a_plan() -> Plan:
    return Plan("bfloat16", "matmul", True, 1, 1, 100, 4)


def test_a_gain_is_kept_with_the_point_where_it_is_paid_back(monkeypatch):
    work, plan = Work(monkeypatch, 2.0, 31.0, 1.5), a_plan()
    try_compile(plan, "auto", work.batch, work.compile)
    assert plan.compile
    assert plan.first_batch_seconds == 31.0
    assert plan.batch_seconds == {"eager": 2.0, "compiled": 1.5}
    assert plan.why["compile"].endswith("compiling took 31, paid back after 59 micro-batches")


@pytest.mark.parametrize(("wanted", "kept"), [("auto", False), ("on", True)])
def test_without_a_gain_only_a_recipe_that_asks_for_it_compiles(monkeypatch, wanted, kept):
    work, plan = Work(monkeypatch, 1.0, 30.0, 1.1), a_plan()
    try_compile(plan, wanted, work.batch, work.compile)
    assert plan.compile is kept
    assert ("as the recipe says" if kept else "no gain") in plan.why["compile"]
