"""Sketches, families, claims: what stands on top of a trace."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_models import CONFIG, changed, cnn, gpt2, llama, write

import hermitcrab
from hermitcrab.cli import main
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.trace.sketch import sketch
from hermitcrab.trace.tree import arrange, edmonds, svg, tree


def test_a_sketch_stands_for_the_weights(tmp_path: Path, base: Path, twin: Path) -> None:
    child = write(tmp_path / "child", changed(llama(0), 0.2), CONFIG)
    told = sketch(base, tmp_path / "base.sketch.safetensors")
    assert told["bytes"] == (tmp_path / "base.sketch.safetensors").stat().st_size
    sketch(child, tmp_path / "child.sketch.safetensors")
    sketched = tmp_path / "base.sketch.safetensors"
    for suspect, related in ((child, True), (tmp_path / "child.sketch.safetensors", True), (twin, False)):
        found = hermitcrab.trace(suspect, sketched).results[0]
        assert (found.verdict == "related") == related
        assert any("sketch" in x for x in found.not_tested)


def test_a_sketch_that_was_changed_is_refused(tmp_path: Path, base: Path, twin: Path) -> None:
    path = tmp_path / "s.safetensors"
    sketch(base, path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'\\"rows\\": ', b'\\"ruws\\": ', 1))
    with pytest.raises(HermitcrabError, match="description is damaged"):
        hermitcrab.trace(twin, path)
    with pytest.raises(HermitcrabError, match="nothing to sketch by"):
        sketch(write(tmp_path / "cnn", cnn(0)), path)


def test_a_family_is_found_with_its_root_and_its_strangers(tmp_path: Path, base: Path, twin: Path) -> None:
    tuned = changed(llama(0), 0.05, 1)
    step = {k: np.abs(v).max(-1, keepdims=True) / 7 for k, v in tuned.items()}
    folders = [
        base,
        write(tmp_path / "tuned", tuned, CONFIG),
        write(tmp_path / "other", changed(llama(0), 0.08, 2), CONFIG),
        write(
            tmp_path / "int4",
            {k: (np.round(v / step[k]) * step[k]).astype(np.float32) if v.ndim == 2 else v for k, v in tuned.items()},
            CONFIG,
        ),
        twin,
    ]
    found = tree(folders)
    assert sorted(len(f["members"]) for f in found["families"]) == [1, 4]
    edges = {(Path(e["parent"]).name, Path(e["child"]).name): e for e in found["edges"]}
    assert ("tuned", "int4") in edges
    assert edges["tuned", "int4"]["directed"]
    assert {("base", "tuned"), ("base", "other")} <= set(edges) | {(b, a) for a, b in edges}
    drawn = svg(found)
    assert drawn.count("<circle") == 5
    for models, says in (([base], "two models"), ([base, base], "given twice")):
        with pytest.raises(UsageError, match=says):
            tree(models)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_edmonds_is_as_cheap_as_trying_everything(data: st.DataObject) -> None:
    import itertools

    count = data.draw(st.integers(2, 5))
    nodes = [str(i) for i in range(count)]
    costs = {(a, b): data.draw(st.integers(1, 9)) + 0.0 for a in nodes for b in nodes if a != b}
    found = edmonds("0", nodes, costs)

    def reaches(parent: dict[str, str]) -> bool:
        for n in nodes[1:]:
            seen = set()
            while n != "0":
                if n in seen:
                    return False
                seen.add(n)
                n = parent[n]
        return True

    assert reaches(found)
    options = itertools.product(*[[a for a in nodes if a != b] for b in nodes[1:]])
    best = min(
        sum(costs[a, b] for b, a in p.items())
        for p in (dict(zip(nodes[1:], o, strict=True)) for o in options)
        if reaches(p)
    )
    assert sum(costs[a, b] for b, a in found.items()) == best


def test_a_merge_has_two_parents() -> None:
    pair = {"distance": 0.3, "relation": "merged", "log10_p": -50.0}
    found = arrange(["a", "b", "m"], {("a", "m"): {**pair, "child": "m"}, ("b", "m"): {**pair, "child": "m", "distance": 0.4}, ("a", "b"):
                    {**pair, "relation": "fine-tuned", "child": None, "distance": 0.2}})  # fmt: skip
    into = {(e["parent"], e["tree"]) for e in found["edges"] if e["child"] == "m"}
    assert into == {("a", True), ("b", False)}


def card(folder: Path, base: str) -> None:
    (folder / "README.md").write_text(f"---\nlicense: mit\nbase_model: {base}\n---\n# A model\n")


def test_a_true_claim_stands_and_a_false_one_is_contradicted(
    tmp_path: Path, base: Path, twin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = write(tmp_path / "child", changed(llama(0), 0.1), CONFIG)
    card(child, "somebody/base")
    assert main(["trace", "--claim", str(child), str(base), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["claims"][0]["declared"] == "somebody/base"
    assert main(["trace", "--claim", str(child), str(twin), "--quiet"]) == 3
    assert "contradicted: declared base somebody/base" in capsys.readouterr().out


def test_a_parent_that_was_not_declared_contradicts(tmp_path: Path, base: Path, twin: Path) -> None:
    child = write(tmp_path / "child", changed(llama(0), 0.1), CONFIG)
    (child / "hermitcrab.json").write_text(
        json.dumps({"base": {"name": "scratch llama", "kind": "scratch", "uri": "scratch"}})
    )
    assert main(["trace", "--claim", str(child), str(base), "--quiet"]) == 3
    assert main(["trace", "--claim", str(child), str(twin), "--quiet"]) == 0


def test_a_record_leads_to_its_base(tmp_path: Path, base: Path) -> None:
    child = write(tmp_path / "child", changed(llama(0), 0.1), CONFIG)
    (child / "hermitcrab.json").write_text(
        json.dumps({"base": {"name": "base", "kind": "safetensors", "uri": str(base)}})
    )
    store = ["--store", str(tmp_path / "store"), "--quiet"]
    assert main(["trace", "--claim", str(child), *store]) == 0
    (child / "hermitcrab.json").write_text(json.dumps({"base": {"name": "gone", "uri": str(tmp_path / "gone")}}))
    assert main(["trace", "--claim", str(child), *store]) == 1


def test_nothing_declared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = write(tmp_path / "alone", gpt2(0))
    assert main(["trace", "--claim", str(alone), "--quiet"]) == 1
    assert "declares no base model" in capsys.readouterr().err
    (alone / "README.md").write_text("---\nbase_model: [unclosed\n---\n")
    assert main(["trace", "--claim", str(alone), "--quiet"]) == 1
    assert "front matter" in capsys.readouterr().err


def test_verbs_on_the_command_line(tmp_path: Path, base: Path, twin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sketch", str(base), "--out", str(tmp_path / "s.safetensors"), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["matrices"] == 15
    assert main(["tree", str(base), str(twin), "--svg", str(tmp_path / "t.svg"), "--quiet"]) == 0
    assert (tmp_path / "t.svg").read_text().startswith("<svg")
