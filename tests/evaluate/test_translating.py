"""BLEU and chrF of sums against sacrebleu's own corpus scores, and the nearest segment."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

sacrebleu = pytest.importorskip("sacrebleu.metrics")

from hermitcrab.evaluate import translating
from hermitcrab.evaluate.answers import Answers, read
from hermitcrab.evaluate.metrics import measure, value_of

ENGLISH = ["the file is open", "close the page now", "a", "print the table on the second page, please", "save"]
SAID = ["the file is open", "close this page", "b", "print the table on a page", ""]
CHINESE = ["打开文件对话框。", "关闭页面", "保存", "在第二页打印表格", "图表 3"]
TOLD = ["打开文件。", "关闭页面", "存", "打印第二页的表格", "图表 4"]


def answers(said: list[str], meant: list[str]) -> Answers:
    return read(pa.table({"row_id": [f"{i}" for i in range(len(said))], "reference": meant, "prediction": said}), "m")


@pytest.mark.parametrize(("said", "meant", "cut"), [
    (SAID, ENGLISH, "13a"), (TOLD, CHINESE, "zh"), (ENGLISH, ENGLISH, "13a"), ([""] * 5, ENGLISH, "13a"), (["x y z w"] * 5, ENGLISH, "13a"),
    (["the", "page"], ["the", "page"], "13a"),
])  # fmt: skip
def test_figures_are_those_of_sacrebleu(said, meant, cut):
    assert translating.tokenizer_for(meant) == cut
    made = answers(said, meant)
    bleu = sacrebleu.BLEU(tokenize=cut, force=True).corpus_score(said, [meant]).score
    assert value_of("bleu", made, ()) == pytest.approx(bleu, abs=1e-9)
    assert value_of("chrf", made, ()) == pytest.approx(sacrebleu.CHRF().corpus_score(said, [meant]).score, abs=1e-9)


def test_a_resample_is_the_figure_of_the_rows_drawn():
    made, draw = answers(TOLD, CHINESE), np.random.default_rng(0)
    for name in ("bleu", "chrf"):
        rows, values = getattr(translating, f"{name}_sums"), getattr(translating, name)
        rows_NK = rows(made, ())
        for _ in range(5):
            drawn = draw.integers(0, 5, 5)
            again = answers([TOLD[i] for i in drawn], [CHINESE[i] for i in drawn])
            assert values(rows_NK[drawn].sum(axis=0, keepdims=True))[0] == pytest.approx(value_of(name, again, ()))


def test_figures_carry_intervals():
    table = pa.table({"row_id": list("abcde"), "reference": CHINESE, "prediction": TOLD})
    for entry in measure(table, ["bleu", "chrf"], model="m", resamples=200):
        assert 0 <= entry["low"] <= entry["value"] <= entry["high"] <= 100


def test_the_nearest_segment_is_the_one_that_shares_most():
    pytest.importorskip("sklearn")
    place, like = translating.nearest(["open the file", "close the page", "print"], ["open a file", "print", "xyz"])
    assert place[:2] == [0, 1 + 1]
    assert like[1] == pytest.approx(1)
    assert like[2] == 0
