"""A real tiny model through the stage, by the run itself; and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny import RECIPE, write_project

from hermitcrab import compress
from hermitcrab.compress.parity import check_distance, check_inputs
from hermitcrab.digest import digest_file, tree_files
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.models.formats import gguf_writer
from hermitcrab.pipeline import Run, find_run, plan, stage_named
from hermitcrab.recipe import Compress, load, parse
from hermitcrab.stages.compress import slice_of
from hermitcrab.store import Store, read_json

torch = pytest.importorskip("torch")

TYPES = ("F32", "Q8_0", "Q4_0")
COMPRESS = "compress: {gguf: [F32, Q8_0, Q4_0], rows: 16}\npackage: {sign: false}\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder, RECIPE + COMPRESS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run().execute()
    return folder


@pytest.fixture
def here(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(project, tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    return tmp_path / "p"


def run(*overrides: str) -> Run:
    return Run(load("small.yaml", overrides), Store(".crab/store"), Path("runs"))


def forget(run: Run) -> None:
    """The finished artifact of the stage is gone, as if it had never been made."""
    shutil.rmtree(find_run("small", run.store)[1]["compress"].path)


def test_every_type_is_written_loaded_back_and_compared(project: Path) -> None:
    _, made = find_run("small", Store(project / ".crab/store"))
    entries = {entry["type"]: entry for entry in made["compress"].read("compression.json")}
    assert tuple(entries) == TYPES
    for kind, entry in entries.items():
        file = made["compress"].payload / entry["file"]
        assert entry["file"] == f"gguf/small-{kind}.gguf"
        assert entry["files"] == [{"path": entry["file"], "sha256": digest_file(file), "size": file.stat().st_size}]
        assert entry["size"] == file.stat().st_size
        assert entry["method"] == {"rounding": "none" if kind == "F32" else "nearest"}
        parity = entry["parity"]
        assert (parity["n"], parity["metric"]) == (16, "accuracy")
        assert parity["low"] <= parity["difference"] <= parity["high"]
        assert parity["difference"] == pytest.approx(parity["compressed"] - parity["uncompressed"])
        assert parity["flips"] >= parity["gained"] + parity["lost"]
        assert parity["mean_kl"] < parity["mean_kl_to_base"]
        answers = pq.read_table(made["compress"].payload / "predictions" / f"gguf-{kind}.parquet")
        assert answers.num_rows == 16
        assert not answers.schema.metadata  # how long it took is a fact
    whole = entries["F32"]["parity"]
    assert (whole["flips"], whole["mean_kl"], whole["max_abs_logit_difference"]) == (0, 0.0, 0.0)
    assert whole["mean_kl"] < entries["Q8_0"]["parity"]["mean_kl"] < entries["Q4_0"]["parity"]["mean_kl"]
    assert entries["F32"]["bits_per_weight"] == 32
    assert entries["F32"]["size"] > entries["Q8_0"]["size"] > entries["Q4_0"]["size"]
    assert entries["Q4_0"]["tensors"] == {"F32": 5, "Q4_0": 15, "Q8_0": 1}
    ledger = {entry["name"]: entry for entry in made["compress"].read("ledger.json")}
    assert ledger["tensors of gguf Q4_0"]["changed"] == {"output head, in Q8_0": 1, "vector, in F32": 5}
    assert ledger["tensors of gguf F32"]["changed"] == {}
    facts = made["compress"].facts["compressed"]
    assert set(facts) == {*(f"gguf {kind}" for kind in TYPES), "uncompressed"}
    assert all(fact["unit"] == "tokens" and fact["per_second"] > 0 and fact["memory"] > 10e6 for fact in facts.values())
    tensors = made["compress"].read("tensors.json")["gguf Q4_0"]
    assert {t["dtype"]: t["bits"] for t in tensors} == {"F32": 32, "Q4_0": 4.5, "Q8_0": 8.5}


def test_answers_are_those_of_the_same_rows_under_the_same_prompts(project: Path) -> None:
    """The file in full precision answers as the model did, row by row."""
    _, made = find_run("small", Store(project / ".crab/store"))
    ours = {
        r["row_id"]: r for r in pq.read_table(made["compress"].payload / "predictions/gguf-F32.parquet").to_pylist()
    }
    theirs = pq.read_table(made["evaluate"].payload / "predictions/derived.parquet").to_pylist()
    same = [row for row in theirs if row["row_id"] in ours]
    assert len(same) == 16
    assert sorted(ours) == sorted(row["row_id"] for row in theirs)[:16]
    for row in same:
        assert row["prediction"] == ours[row["row_id"]]["prediction"]
        assert row["scores"] == pytest.approx(ours[row["row_id"]]["scores"], abs=1e-2)


def test_the_file_says_its_license_and_base(project: Path) -> None:
    from hermitcrab.models.formats import open_weights

    _, made = find_run("small", Store(project / ".crab/store"))
    found = open_weights(made["compress"].payload / "gguf/small-Q4_0.gguf").metadata
    base, record = made["collect"].read("base.json"), made["package"].read("hermitcrab.json")
    assert (found["general.name"], found["general.license"]) == ("small", record["license"])
    assert (found["general.base_model.0.name"], found["hermitcrab.base.digest"]) == (base["name"], base["digest"])
    assert str(project) not in str(found)


def test_the_package_holds_the_files_and_their_figures(project: Path) -> None:
    package = project / "runs/small/package"
    assert {f"gguf/small-{kind}.gguf" for kind in TYPES} <= set(tree_files(package))
    assert [entry["type"] for entry in read_json(package / "hermitcrab.json")["compressed"]] == list(TYPES)
    assert "## Compressed" in (package / "README.md").read_text()
    assert "gguf Q4_0" in (project / "runs/small/report.html").read_text()


def test_the_package_with_gguf_files_is_a_base_as_before(here: Path) -> None:
    text = (
        (here / "small.yaml")
        .read_text()
        .replace("path: base", "path: 'run:small'")
        .replace("name: small", "name: next")
    )
    (here / "next.yaml").write_text(text)
    second = Run(load("next.yaml", ["train.steps=2", "compress.gguf=[Q8_0]"]), Store(".crab/store"), Path("runs"))
    second.execute()
    assert find_run("next", second.store)[1]["compress"].read("compression.json")[0]["parity"]["n"] == 16


@pytest.mark.parametrize("stop_at", ["F32 probes", "Q8_0 file", "Q8_0 answers", "Q4_0 probes"])
def test_a_killed_compression_continues_and_gives_the_same_digest(
    here: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    from hermitcrab.compress.parity import Parity

    first = run()
    before = find_run("small", first.store)[1]["compress"].digest
    forget(first)
    kind, what = stop_at.split()
    target = {"file": "check_inputs", "probes": "distance", "answers": "answers"}[what]
    original = getattr(Parity, target)

    def die(self: Parity, *arguments: Any) -> Any:
        if kind in str(arguments[0]):
            if what == "answers":
                original(self, *arguments)  # they were given and kept
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Parity, target, die)
    with pytest.raises(KeyboardInterrupt):
        run().execute()
    monkeypatch.setattr(Parity, target, original)
    (draft,) = (here / ".crab/store/drafts").iterdir()
    kept = {
        name: (draft / "work" / name).stat().st_mtime_ns
        for name in tree_files(draft / "work")
        if "sessions" not in name
    }
    asked: list[str] = []
    monkeypatch.setattr("hermitcrab.evaluate.asking.say", asked.append)
    seal = Store.seal

    def look(self: Store, draft: Any) -> Any:
        if draft.stage == "compress":  # what was there was not made again
            assert kept.items() <= {n: (draft.work / n).stat().st_mtime_ns for n in tree_files(draft.work)}.items()
        return seal(self, draft)

    monkeypatch.setattr(Store, "seal", look)
    again = run()
    again.execute()
    assert again.artifacts["compress"].digest == before
    done = len([name for name in kept if name.startswith("answers/")])
    assert len(asked) == len(TYPES) - done
    assert not list((here / ".crab/store/drafts").iterdir())


def test_with_nothing_asked_it_says_so_and_imports_no_torch(here: Path) -> None:
    nothing = run("compress.gguf=[]", "compress.rows=null")
    nothing.execute()
    made = nothing.artifacts["compress"]
    assert (made.read("compression.json"), made.read("ledger.json")) == ([], [])
    assert tree_files(made.payload) == ["compression.json", "ledger.json"]
    assert made.facts["finished"] - made.facts["started"] < 0.5
    assert not (here / "runs/small/package/gguf").exists()
    code = (
        "import sys; from hermitcrab.pipeline import stage_named; from hermitcrab.stages import Job\n"
        "class Draft:\n    def write(self, name, value): assert value == []\n"
        "from hermitcrab.recipe import load\n"
        "stage = stage_named('compress'); part = stage.slice(load('small.yaml', ['compress.gguf=[]', 'compress.rows=null']))\n"
        "stage.run(Job(part=part, inputs={}, draft=Draft(), places={}))\n"
        "assert not {'torch', 'transformers', 'gguf', 'pyarrow'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=here)


def test_only_what_asks_for_it_makes_it_again(here: Path) -> None:
    again = run("compress.gguf=[Q8_0]")
    rows = {row["stage"]: row for row in plan(again)}
    assert [row["action"] for row in rows.values()] == ["reuse"] * 5 + ["run", "run"]
    assert rows["compress"]["needs"]["disk"] > 0


def test_a_target_is_the_margin_and_met_by_the_same_answers(here: Path) -> None:
    strict = run("compress.gguf=[F32, Q8_0]", "compress.target={max_loss: 0.2, max_kl: 1e-9}")
    strict.execute()  # of 16 rows none turned: at most .194 is lost
    whole, mixed = strict.artifacts["compress"].read("compression.json")
    for entry in (whole, mixed):
        assert (entry["parity"]["margin"], entry["parity"]["within_margin"]) == (0.2, True)
    assert mixed["method"]["mixed"]["widened"]
    assert mixed["tensors"]["F16"] > 0


# What it refuses


def test_a_file_that_is_nearer_to_the_base_is_refused() -> None:
    check_distance("Q4_0", {"mean_kl": 0.1, "mean_kl_to_base": 0.2})
    with pytest.raises(HermitcrabError, match="Q4_0 loses what training added"):
        check_distance("Q4_0", {"mean_kl": 0.2, "mean_kl_to_base": 0.1})
    with pytest.raises(HermitcrabError, match="no numbers"):
        check_distance("Q4_0", {"mean_kl": float("nan"), "mean_kl_to_base": 0.1})


def test_the_base_in_the_place_of_the_model_is_found_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hermitcrab.models import to_gguf

    init = to_gguf.Export.__init__
    monkeypatch.setattr(to_gguf.Export, "__init__", lambda self, folder, about: init(self, here / "base", about))
    forget(run())
    with pytest.raises(HermitcrabError, match="F32 loses what training added"):
        run().execute()


def test_a_tokenizer_that_reads_otherwise_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hermitcrab.models import to_gguf

    original = to_gguf.tokenizer_keys
    monkeypatch.setattr(to_gguf, "tokenizer_keys", lambda *a: {**original(*a), "tokenizer.ggml.pre": "mpt"})
    forget(run())
    with pytest.raises(HermitcrabError, match=r"gguf F32: it does not read what the model reads: \d+ of \d+ inputs"):
        run().execute()


def test_other_prompts_than_evaluate_asked_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hermitcrab.tasks.text_generation import TextGeneration

    monkeypatch.setattr(TextGeneration, "asked", lambda *_: "sha256:other")
    forget(run())
    with pytest.raises(HermitcrabError, match=r"would be asked with other prompts \(sha256:other\)"):
        run().execute()


def test_inputs_are_compared_name_by_name() -> None:
    class Given:
        def __init__(self, **found: Any):
            self.found = found

        def inputs(self, rows: Any) -> dict[str, Any]:
            return self.found

    check_inputs(Given(a=[1], b=[2]), Given(a=[1], b=[2]), None, "x.gguf")  # type: ignore[arg-type]
    with pytest.raises(HermitcrabError, match=r"1 of 2 inputs become something else, as b \(\[3\], expected \[2\]\)"):
        check_inputs(Given(a=[1], b=[3]), Given(a=[1], b=[2]), None, "x.gguf")  # type: ignore[arg-type]


def test_an_architecture_that_cannot_be_written_is_told_before_training(here: Path, capsys: Any) -> None:
    from tiny import write_model

    shutil.rmtree(here / "base")
    write_model(here / "base", "gpt_neox")
    with pytest.raises(HermitcrabError, match=r"'gpt_neox' are not written as GGUF \(only llama, qwen2, qwen3\)"):
        run().execute()
    assert "train: running" not in capsys.readouterr().err
    run("compress.gguf=[]", "compress.rows=null", "train.steps=2").execute()


def test_a_base_is_checked_from_its_files_alone(here: Path) -> None:
    base = find_run("small", Store(".crab/store"))[1]["collect"].read("base.json")
    asked = run().recipe.compress
    compress.check(asked, base, here / "base")
    scratch = {**base, "kind": "scratch", "configuration": {"model_type": "bloom"}}
    with pytest.raises(HermitcrabError, match="'bloom' are not written"):
        compress.check(asked, scratch, here / "base")
    compress.check(run("compress.gguf=[]", "compress.rows=null").recipe.compress, scratch, here / "base")


def test_the_slice_takes_what_the_files_depend_on() -> None:
    text = RECIPE + "package: {license: Apache-2.0, sign: SIGN}\ncompress: {gguf: [Q8_0]}\n"
    one, two = (slice_of(parse(text.replace("SIGN", sign))) for sign in ("true", "false"))
    assert one == two
    assert (one.name, one.license, one.compress.gguf) == ("small", "Apache-2.0", ["Q8_0"])
    assert stage_named("compress").inputs == ("collect", "prepare", "train", "evaluate")


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("{gguf: [Q9_K]}", "Q8_0"),
        ("{gguf: [Q8_0, Q8_0]}", "each type is given once"),
        ("{rows: 5}", "none is asked for"),
    ],
)
def test_a_part_that_cannot_be_meant_is_refused(part: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(RECIPE + f"compress: {part}\n")


def test_the_recipe_knows_the_types_that_can_be_written() -> None:
    kinds = [*gguf_writer.TYPES, *gguf_writer.NATIVE]
    assert Compress(gguf=kinds).gguf == kinds
    assert set(gguf_writer.FILE_TYPES) == set(kinds) == set(gguf_writer.BITS)
