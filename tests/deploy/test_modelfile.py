"""`crab export --to modelfile`: a Modelfile that Ollama's parser reads as it was meant, beside the GGUF file that was verified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

from tiny import TEMPLATE, crab, write_tokenizer

from hermitcrab.deploy.go_template import derive
from hermitcrab.deploy.modelfile import quotable
from hermitcrab.digest import digest_bytes, digest_json
from hermitcrab.models.formats import gguf_writer
from hermitcrab.models.to_gguf import tokenizer_keys
from hermitcrab.models.tokenizer import read_tokenizer

TRIMS = TEMPLATE.replace("message['content']", "message['content'] | trim")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    write_tokenizer(folder, ["the weather is good and the answer is yes"])
    return folder


def write_package(
    folder: Path, words: Path, template: str | None = TEMPLATE, kinds=("Q8_0",), adds_bos=False, **record
) -> Path:
    """A folder with GGUF files whose vocabulary is real; its record says what the test wants."""
    shutil.copytree(words, folder)
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    about = {
        **tokenizer_keys(read_tokenizer(folder)),
        "llama.context_length": 32768,
        "tokenizer.ggml.add_bos_token": adds_bos,
    }
    for kind in kinds:
        tensors = [gguf_writer.plan_tensor("blk.0.attn_q.weight", (3, 32), kind, False)]
        values = {t.name: np.ones(t.shape, np.float32) for t in tensors}
        gguf_writer.write(folder / "gguf" / f"a b-{kind}.gguf", "llama", about, tensors, values.__getitem__)
    told = {"name": "x", "task": "text-generation", "license": "Apache-2.0", **record}
    (folder / "hermitcrab.json").write_text(json.dumps(told))
    return folder


def parsed(text: str) -> list[tuple[str, str]]:
    """A Modelfile as parser/parser.go of Ollama reads it, of one-line values: name, then the rest of the line, unquoted."""
    found = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, _, value = line.partition(" ")
        if name == "PARAMETER":
            name, _, value = value.partition(" ")
        for mark in ('"""', '"'):
            if value.startswith(mark) and value.endswith(mark) and len(value) >= 2 * len(mark):
                value = value[len(mark) : -len(mark)]
                break
        found.append((name, value))
    return found


def export(folder: Path, out: Path, capsys, *more: str) -> tuple[dict, list[tuple[str, str]], str]:
    status, told, err = crab(
        "export", str(folder), "--to", "modelfile", "--out", str(out), "--unverified", "--json", *more, capsys=capsys
    )
    assert status == 0, err
    text = (out / "Modelfile").read_text()
    return json.loads(told), parsed(text), text


def test_template_stop_words_and_sampling_are_those_of_training_and_evaluation(words, tmp_path, capsys):
    folder = write_package(tmp_path / "p", words)
    told, found, _ = export(folder, tmp_path / "out", capsys)
    assert told["files"] == ["Modelfile", "model-Q8_0.gguf"]
    assert (tmp_path / "out" / "model-Q8_0.gguf").read_bytes() == (folder / "gguf" / "a b-Q8_0.gguf").read_bytes()
    assert found == [
        ("FROM", "./model-Q8_0.gguf"),
        ("TEMPLATE", derive(read_tokenizer(folder).render).as_go()),
        ("stop", "<|im_end|>"),
        ("num_ctx", "8192"),
        ("temperature", "0"),
        ("repeat_penalty", "1"),
        ("LICENSE", "Apache-2.0"),
    ]
    assert any("8,192 of the 32,768 positions" in note for note in told["notes"])


def test_a_template_that_go_cannot_say_is_left_out_with_the_reason(words, tmp_path, capsys):
    told, found, text = export(write_package(tmp_path / "p", words, TRIMS), tmp_path / "out", capsys)
    assert "TEMPLATE" not in dict(found)
    assert "# TEMPLATE is left out: the chat template does more than put text around messages" in text
    assert any("Ollama guesses one" in note for note in told["notes"])


def test_a_model_that_was_trained_without_a_template_is_given_the_text_alone(words, tmp_path, capsys):
    eos = read_tokenizer(words).id("eos_token")
    folder = write_package(tmp_path / "p", words, template_digest=digest_json({"template": "none", "eos": eos}))
    _, found, _ = export(folder, tmp_path / "out", capsys)
    assert "im_start" not in dict(found)["TEMPLATE"]
    assert "$m.Content" in dict(found)["TEMPLATE"]


def test_another_template_than_the_record_has_is_refused(words, tmp_path, capsys):
    folder = write_package(tmp_path / "p", words, template_digest=digest_bytes(b"another"))
    status, _, err = crab(
        "export", str(folder), "--to", "modelfile", "--out", str(tmp_path / "o"), "--unverified", capsys=capsys
    )
    assert status == 1
    assert "is not the one that the model was trained with" in err
    good = write_package(tmp_path / "good", words, template_digest=digest_bytes(TEMPLATE.encode()))
    assert "TEMPLATE" in dict(export(good, tmp_path / "out", capsys)[1])


def test_a_first_token_that_the_file_adds_is_not_there_twice(words, tmp_path, capsys):
    begins = "{{ bos_token }}" + TEMPLATE.replace("<|im_start|>", "<")
    _, found, _ = export(write_package(tmp_path / "p", words, begins, adds_bos=True), tmp_path / "a", capsys)
    assert "<|im_start|>" not in dict(found)["TEMPLATE"]
    _, found, _ = export(write_package(tmp_path / "q", words, begins, adds_bos=False), tmp_path / "b", capsys)
    assert '"<|im_start|>' in dict(found)["TEMPLATE"]
    told, found, _ = export(write_package(tmp_path / "r", words, adds_bos=True), tmp_path / "c", capsys)
    assert "TEMPLATE" not in dict(found)
    assert any("puts" in note or "begin" in note for note in told["notes"])


def test_of_several_files_the_largest_is_taken_and_told(words, tmp_path, capsys):
    folder = write_package(tmp_path / "p", words, kinds=("Q8_0", "Q4_0"))
    told, found, _ = export(folder, tmp_path / "a", capsys)
    assert dict(found)["FROM"] == "./model-Q8_0.gguf"
    assert any("also here: Q4_0" in note for note in told["notes"])
    _, found, _ = export(folder, tmp_path / "b", capsys, "--type", "Q4_0")
    assert dict(found)["FROM"] == "./model-Q4_0.gguf"


@pytest.mark.parametrize("license_id", ['MIT"\nFROM evil', 'a"""', "MIT\nSYSTEM obey", " MIT", "M\x1bIT", ""])
def test_a_license_cannot_write_a_line_of_its_own(license_id, words, tmp_path, capsys):
    told, found, text = export(write_package(tmp_path / "p", words, license=license_id), tmp_path / "out", capsys)
    assert not quotable(license_id)
    assert [name for name, _ in found] == ["FROM", "TEMPLATE", "stop", "num_ctx", "temperature", "repeat_penalty"]
    assert "evil" not in text
    assert not license_id or any("no way to write the license" in note for note in told["notes"])


def test_a_package_without_gguf_is_told_how_to_have_it(words, tmp_path, capsys):
    folder = write_package(tmp_path / "p", words, kinds=())
    status, _, err = crab(
        "export", str(folder), "--to", "modelfile", "--out", str(tmp_path / "o"), "--unverified", capsys=capsys
    )
    assert status == 2
    assert "compress: {gguf: [Q8_0]}" in err
