"""hermitcrab from Python: the same runs as the command line, shown in a notebook and in a terminal, safe against what names hold."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tiny import RECIPE, write_project

import hermitcrab
from hermitcrab.recipe import Recipe, load
from hermitcrab.store import read_json

BASE = "<b onclick=alert(1)>base&"  # a folder may be called so, and its name is shown
SMALL = RECIPE.replace(
    "few_shot: 2, calibrate: true, baselines: [majority, tfidf-logreg], noise_rows: 8", "noise_rows: 0"
)
SMALL = SMALL.replace("{path: base}", json.dumps({"path": BASE})).replace("steps: 12", "steps: 8, profile: true")
SMALL += "tune: {train.learning_rate: [1e-3, 5e-3]}\ncompress: {gguf: [Q8_0], rows: 8}\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder, SMALL)
    (folder / "base").rename(folder / BASE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        hermitcrab.run("small.yaml")
    return folder


@pytest.fixture
def here(project, tmp_path, monkeypatch) -> Path:
    shutil.copytree(project, tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "p" / "config"))
    return tmp_path / "p"


class Tags(HTMLParser):
    """The tags of a page and its text; what is not closed in order is an error."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text, self.attributes = [], "", set[str]()
        self.open: list[str] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag not in ("br", "meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_importing_is_light_and_the_names_are_functions_whatever_was_imported_before():
    script = (
        "import sys, hermitcrab; names = dir(hermitcrab); heavy = [m for m in ('torch', 'transformers', 'numpy', 'pyarrow', 'pydantic',"
        " 'yaml', 'rich', 'jinja2', 'cryptography') if m in sys.modules]\n"
        "import hermitcrab.pipeline, hermitcrab.comparing, hermitcrab.lineage.verify, hermitcrab.cli\n"
        "print(heavy, all(callable(getattr(hermitcrab, n)) for n in ('run', 'verify', 'compare')), 'run' in names)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[] True True"
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        hermitcrab.rnu  # noqa: B018


def test_a_file_a_mapping_and_a_recipe_are_the_same_run(here):
    told = load("small.yaml").model_dump(mode="json")
    everything = list(hermitcrab.run("small.yaml").reused)
    assert "train" in everything
    assert hermitcrab.run(told).reused == everything
    assert hermitcrab.run(Recipe.model_validate(told)).reused == everything
    changed = hermitcrab.run(told, {"evaluate.seed": 4}, "report.show_text=true")
    assert "evaluate" not in changed.reused
    assert changed.recipe["evaluate"]["seed"] == 4
    assert changed.recipe["report"]["show_text"] is True
    assert told["evaluate"]["seed"] == 0  # the caller's mapping is left alone


def test_a_file_is_checked_with_the_overrides_set_as_on_the_command_line(here):
    text = Path("small.yaml").read_text()
    Path("open.yaml").write_text(text.replace("steps: 8", "steps: many"))
    assert "train" in hermitcrab.run("open.yaml", {"train.steps": 8}).reused
    line = next(number for number, words in enumerate(text.splitlines(), 1) if "steps: 8" in words)
    with pytest.raises(hermitcrab.HermitcrabError, match=rf"open\.yaml:{line}: train\.steps: .*Received: 'several'"):
        hermitcrab.run("open.yaml", {"train.steps": "several"})


def test_a_result_gives_what_the_package_has(here):
    result = hermitcrab.run("small.yaml")
    assert result.metrics == read_json(result.package / "metrics.json")
    assert result.comparison == read_json(result.package / "comparison.json")
    assert result.trials == read_json(result.package / "hermitcrab.json")["trials"]
    assert [trial["settings"] for trial in result.trials] == [{"train.learning_rate": rate} for rate in (1e-3, 5e-3)]
    chosen = next(trial for trial in result.trials if trial["chosen"])
    assert result.recipe["train"]["learning_rate"] == chosen["settings"]["train.learning_rate"]
    assert result.digests["train"] == chosen["model"]
    assert result.report().read_text().startswith("<!doctype html>")
    assert [path.suffixes[-2:] for path in result.profile] == [[".json", ".gz"]]
    assert result.profile[0].is_file()
    found = result.verify()
    assert found
    assert not found.authenticated
    assert hermitcrab.verify(result.package, here / "config/hermitcrab/signing-key.pub.pem").authenticated
    assert hermitcrab.Result.of("small").digests == result.digests


def test_a_result_prints_as_crab_show_does_and_its_html_holds_no_tag_of_a_name(here):
    result = hermitcrab.Result.of("small")
    text = repr(result)
    assert result.comparison["sentence"].split(":")[0] in text
    assert BASE in text
    assert "tensorboard --logdir" in text
    for shown in (result, hermitcrab.verify(result)):
        page = Tags(shown._repr_html_())
        assert set(page.tags) <= {
            "div",
            "style",
            "h4",
            "h5",
            "p",
            "strong",
            "br",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
        }
        assert page.attributes <= {"class", "scope"}
    page = Tags(result._repr_html_())
    assert BASE in page.text
    for row in ("train.learning_rate", "chosen", "Settings searched", "package", "derived minus this"):
        assert row in page.text


def test_a_verification_that_fails_is_false_and_names_the_file(here):
    package = hermitcrab.Result.of("small").package
    data = bytearray((package / "config.json").read_bytes())
    data[-3] ^= 1
    (package / "config.json").write_bytes(data)
    found = hermitcrab.verify(package)
    assert not found
    assert "config.json" in {failure.file for failure in found.failures}
    assert "FAIL" in repr(found)
    assert "config.json" in Tags(found._repr_html_()).text


def test_failures_are_exceptions_with_the_sentence(here):
    with pytest.raises(hermitcrab.HermitcrabError, match="did you mean `learning_rate`"):
        hermitcrab.run("small.yaml", {"train.leraning_rate": 1.0})
    with pytest.raises(hermitcrab.HermitcrabError, match="a recipe is a mapping"):
        hermitcrab.run([1, 2])  # type: ignore[arg-type]
    with pytest.raises(hermitcrab.HermitcrabError, match=r"evaluate\.resamples"):
        hermitcrab.run({**load("small.yaml").model_dump(mode="json"), "evaluate": {"resamples": 1}})
    with pytest.raises(hermitcrab.HermitcrabError, match="no run is named `smal`; did you mean `small`"):
        hermitcrab.Result.of("smal")


def test_a_notebook_shows_the_run_the_comparison_and_the_verification(here):
    """Cells in a real IPython shell: what is shown is what its display formatter makes of the objects."""
    pytest.importorskip("IPython")
    cells = [
        "import hermitcrab",
        "result = hermitcrab.run('small.yaml')\nresult",
        "hermitcrab.verify(result)",
        f"hermitcrab.compare({BASE!r}, result, 'run:small/prepare', rows=12)",
        "hermitcrab.verify('nowhere')",
    ]
    script = (
        "import json, sys\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell, told = InteractiveShell.instance(), []\n"
        "for cell in json.loads(sys.stdin.read()):\n"
        "    done = shell.run_cell(cell, store_history=True)\n"
        "    shown = {} if done.result is None else shell.display_formatter.format(done.result)[0]\n"
        "    told.append({'error': str(done.error_in_exec or ''), 'shown': shown})\n"
        "print(json.dumps(told))"
    )
    told = subprocess.run([sys.executable, "-c", script], input=json.dumps(cells), capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    imported, ran, verified, compared, failed = json.loads(told.stdout.splitlines()[-1])
    assert imported == {"error": "", "shown": {}}
    for cell, words in ((ran, "Settings searched"), (verified, "intact"), (compared, "beside")):
        assert not cell["error"]
        shown = cell["shown"]
        assert set(shown) == {"text/plain", "text/html"}
        assert words in Tags(shown["text/html"]).text
        assert "<b onclick" not in shown["text/html"]
    assert "nowhere" in failed["error"]
