"""Which engine serves a model, and which of its files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tiny import write_model

from hermitcrab.digest import describe_files
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.models.base import describe
from hermitcrab.models.to_gguf import Export
from hermitcrab.recipe import Base, Train
from hermitcrab.references import Resolved
from hermitcrab.serve import choosing
from hermitcrab.serve.choosing import choose, tied
from hermitcrab.serve.opening import Opened
from hermitcrab.tasks import Start
from hermitcrab.tasks.encoding import load_encoder

SAME = {"low": -0.01, "high": 0.01}
WORSE = {"low": -0.3, "high": -0.1}


def opened_at(path: Path, talks: bool = True) -> Opened:
    part = Base(path=str(path), license="MIT")
    base = describe(path, Resolved(str(path), str(path), "", path, None, "folder"), part)
    encoder = load_encoder(base, path, "none") if talks else None
    return Opened("small", "text-generation", Start(base, path, None, {}), Train(), encoder, [], True, 0, None)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("choosing") / "model", hidden_size=128)


@pytest.fixture
def package(plain: Path, tmp_path: Path) -> Path:
    """A folder as `package` leaves it: the model, GGUF files of two types, and their record."""
    import shutil

    folder = tmp_path / "package"
    shutil.copytree(plain, folder)
    (folder / "gguf").mkdir()
    record(folder, {"Q8_0": SAME, "Q4_0": SAME})
    return folder


def record(folder: Path, types: dict[str, dict[str, float]], **more: Any) -> None:
    entries = []
    for kind, parity in types.items():
        file = folder / "gguf" / f"small-{kind}.gguf"
        if not file.exists():
            Export(folder, {"general.name": "small"}).write(kind, file)
        (about,) = describe_files(folder, [f"gguf/{file.name}"])
        entries.append(
            {"format": "gguf", "type": kind, "file": about["path"], "files": [about], "parity": parity, **more}
        )
    (folder / "hermitcrab.json").write_text(json.dumps({"compressed": entries}))


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(choosing.importlib.util, "find_spec", lambda name: None if name in missing else found(name))


def test_the_largest_file_whose_answers_are_no_worse_is_served(package: Path) -> None:
    spec, why = choose(opened_at(package))
    assert (spec.engine, Path(spec.path).name) == ("openvino-genai", "small-Q8_0.gguf")
    assert spec.files == describe_files(package / "gguf", ["small-Q8_0.gguf"])
    assert spec.digest == spec.files[0]["sha256"]
    assert spec.ends == [2]
    assert spec.vocabulary == 400
    assert "Q8_0" in why
    record(package, {"Q8_0": WORSE, "Q4_0": SAME})
    assert Path(choose(opened_at(package))[0].path).name == "small-Q4_0.gguf"
    assert Path(choose(opened_at(package), kind="q8_0")[0].path).name == "small-Q8_0.gguf"


def test_where_every_file_is_worse_the_reference_serves_and_says_so(package: Path) -> None:
    record(package, {"Q4_0": WORSE})
    spec, why = choose(opened_at(package))
    assert (spec.engine, spec.path) == ("transformers", str(package))
    assert "compress: {gguf: [Q8_0]}" in why


def test_what_is_shown_to_be_worse_is_not_served_unasked() -> None:
    assert tied({"parity": None})
    assert tied({"parity": SAME})
    assert not tied({"parity": WORSE})
    assert tied({"parity": {"metric": "accuracy", "low": 0.01, "high": 0.1}})  # better
    assert tied({"parity": {"metric": "perplexity", "low": -0.2, "high": -0.1}})
    assert not tied({"parity": {"metric": "perplexity", "low": 0.1, "high": 0.2}})


def test_an_entry_that_is_none_is_told_and_nothing_is_loaded(package: Path) -> None:
    for entry in (
        {"format": "gguf"},
        {"format": "gguf", "type": "Q8_0", "file": "a", "files": [{"path": "a"}]},
        "gguf",
    ):
        (package / "hermitcrab.json").write_text(json.dumps({"compressed": [entry]}))
        with pytest.raises(HermitcrabError, match="`compressed`"):
            choose(opened_at(package))


def test_an_engine_that_is_asked_for_is_taken_and_told(package: Path) -> None:
    for engine in ("llama.cpp", "openvino-genai", "transformers"):
        spec, why = choose(opened_at(package), engine=engine)
        assert spec.engine == engine
        assert "--engine" in why
    assert spec.base["digest"] == spec.digest == opened_at(package).base["digest"]
    with pytest.raises(UsageError, match=r"did you mean `llama\.cpp`"):
        choose(opened_at(package), engine="llama-cpp")
    with pytest.raises(UsageError, match="no file of that type"):
        choose(opened_at(package), kind="Q5_0")


def test_a_model_without_gguf_is_served_by_the_reference_or_by_vllm(plain: Path) -> None:
    assert choose(opened_at(plain))[0].engine == "transformers"
    assert choose(opened_at(plain), settings={"vllm_python": "/some/python"})[0].engine == "vllm"
    with pytest.raises(UsageError, match="loads gguf, and small has safetensors"):
        choose(opened_at(plain), engine="llama.cpp")


def test_what_is_not_installed_is_passed_over_or_named(
    package: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "openvino_genai")
    assert choose(opened_at(package))[0].engine == "llama.cpp"
    with pytest.raises(HermitcrabError, match=r"hermitcrab\[serve\]"):
        choose(opened_at(package), engine="openvino-genai")
    without(monkeypatch, "openvino_genai", "xllamacpp")
    assert choose(opened_at(package))[0].engine == "transformers"
    without(monkeypatch, "torch")
    with pytest.raises(HermitcrabError, match=r"hermitcrab\[train\]"):
        choose(opened_at(plain))


def test_a_bare_gguf_file_is_a_model(package: Path) -> None:
    file = package / "gguf" / "small-Q8_0.gguf"
    spec, _ = choose(opened_at(file))
    assert (spec.engine, spec.path, spec.digest) == ("openvino-genai", str(file), spec.files[0]["sha256"])


def test_a_record_that_leads_out_of_the_package_is_refused(package: Path) -> None:
    found = json.loads((package / "hermitcrab.json").read_text())
    found["compressed"][0]["file"] = "../../elsewhere.gguf"
    (package / "hermitcrab.json").write_text(json.dumps(found))
    with pytest.raises(HermitcrabError, match="leads out of the package"):
        choose(opened_at(package))


def test_a_task_that_makes_no_text_has_no_engine(plain: Path) -> None:
    with pytest.raises(UsageError, match="makes no text"):
        choose(opened_at(plain, talks=False))
