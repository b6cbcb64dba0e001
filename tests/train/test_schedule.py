"""Small pure pieces of the loop."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from hermitcrab.recipe import Train
from hermitcrab.train.loop import Ranks, State, hash_seed, learning_rate


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_in_warm_up_and_never_exceeds_its_peak(schedule):
    part = Train(schedule=schedule, warmup=0.1, learning_rate=1e-3)
    rates = [learning_rate(part, s, 100) for s in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[0] > 0
    assert max(rates) == pytest.approx(1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx({"cosine": 0, "linear": 1e-3 / 90, "constant": 1e-3}[schedule], abs=1e-6)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 4, 7, 8])
def test_every_row_of_a_step_is_taken_by_one_rank_and_all_ranks_take_as_many_turns(world, rows):
    shares = [Ranks(rank, world).shares(np.arange(rows), 2) for rank in range(world)]
    assert len({len(s) for s in shares}) == 1
    assert sorted(np.concatenate([np.concatenate(s) for s in shares]).tolist()) == list(range(rows))


def test_state_survives_json():
    for state in (State(), State(step=3, best_loss=0.5, best_step=2, validation=[{"step": 2, "loss": 0.5}])):
        assert State.from_json(state.as_json()) == state


def test_seeds_differ_by_every_argument():
    seeds = {hash_seed(*v) for v in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]}
    assert len(seeds) == 5
