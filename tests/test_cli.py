"""The command line: it answers at once, says what to do, keeps standard output to itself, and exits as promised."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from hermitcrab.cli import VERBS, main


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_json_and_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    told = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--json" in told
    assert f"example: crab {verb}" in told


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from hermitcrab.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\nprint(sorted(sys.modules), file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "crab run" in told.stdout
    for heavy in ("torch", "transformers", "numpy", "pyarrow", "pydantic", "yaml", "rich", "cryptography", "jinja2"):
        assert f"'{heavy}'" not in told.stderr, heavy


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu", "x.yaml"], "no verb `rnu`; did you mean `run`?"),
        (["run"], "the following arguments are required: recipe"),
        (["run", "nothing.yaml"], "nothing.yaml: no such recipe"),
        (["show", "nothing"], "no run is named `nothing`"),
        (["show", "nothing", "a=b"], "overrides go with a recipe"),
        (["verify", "nothing"], "nothing"),
        (["gc", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_usage_is_a_sentence_and_status_2(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("crab: ")
    assert captured.out == ""


def test_no_verb_prints_help_and_fails(capsys):
    assert main([]) == 2
    assert "VERB" in capsys.readouterr().out


def test_doctor_tells_the_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status = main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert status == (1 if told["problems"] else 0)
    assert told["memory_gib"]["total"] > 0
    assert told["threads"] >= 1
    assert set(told["extras"]) >= {"train", "hub"}
    assert main(["doctor"]) == status


def test_keygen_makes_a_key_that_only_its_owner_reads_and_overwrites_none(tmp_path, capsys):
    assert main(["keygen", "--out", str(tmp_path / "k.pem"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (tmp_path / "k.pem").stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in json.dumps(told)
    assert main(["keygen", "--out", str(tmp_path / "k.pem")]) == 2


def test_schema_is_json(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "hermitcrab recipe"


def test_a_reader_that_leaves_early_is_no_crash():
    pipe = subprocess.run(
        f"{sys.executable} -m hermitcrab schema | head -c 10", shell=True, capture_output=True, text=True
    )
    assert "Traceback" not in pipe.stderr
