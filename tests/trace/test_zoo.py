"""On models that were trained: the nano zoo of `benchmarks/trace`, built here in some ten CPU-seconds."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import hermitcrab
from hermitcrab.trace.verdict import Result


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    from zoo import build

    return build(tmp_path_factory.mktemp("zoo"), nano=True).root


def result(suspect: Path, base: Path) -> Result:
    return hermitcrab.trace(suspect, base).results[0]


def test_twins_and_students_are_not_accused(zoo: Path) -> None:
    """Same text, same order, same configuration, other seeds; and a student that saw nothing but its teacher's answers."""
    twins = sorted((zoo / "evaluation").glob("llama-twin-*"))
    students = sorted((zoo / "evaluation").glob("llama-distilled-*"))
    pairs = [*itertools.combinations(twins, 2), *zip(students, twins, strict=False)]
    assert len(pairs) >= 16
    for a, b in pairs:
        assert result(a, b).verdict != "related", (a.name, b.name)


@pytest.mark.parametrize(
    ("kind", "relation"),
    [
        ("llama-sft", None),
        ("llama-continued-1x", None),
        ("llama-vocabulary-body", "vocabulary replaced"),
        ("moe-upcycled-trained", "experts from a dense model"),
    ],
)
def test_children_are_found_and_named(zoo: Path, kind: str, relation: str | None) -> None:
    for k in range(2):
        found = result(zoo / "evaluation" / f"{kind}-{k:02d}", zoo / "evaluation" / f"llama-twin-{k:02d}")
        assert found.verdict == "related"
        assert found.log10_p is not None
        assert found.log10_p < -6
        assert relation is None or relation in found.relations
        assert [row["base_layer"] for row in found.layer_map if row["expert"] <= 0] == [0, 1]


def test_a_child_that_was_laundered_whole_is_found_and_a_laundered_twin_is_not(zoo: Path, tmp_path: Path) -> None:
    import surgery
    from families import FAMILIES

    f = replace(FAMILIES["llama"], layers=2, width=32, neurons=64, kv_heads=2, vocabulary=300)
    stacked = torch.load(zoo / "trained" / "evaluation-llama-continued-1x.pt")
    p = surgery.quantize(surgery.launder(f, surgery.one(stacked, 0), 3), 8)
    tokenizer = zoo / "evaluation" / "llama-twin-00" / "tokenizer.json"
    washed = surgery.write(tmp_path / "washed", f, p, tokenizer)
    assert result(washed, zoo / "evaluation" / "llama-twin-00").verdict == "related"
    assert result(washed, zoo / "evaluation" / "llama-twin-01").verdict != "related"
