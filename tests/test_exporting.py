"""Models in other formats, each loaded back, signed with the package's record, verified and traced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")
pytest.importorskip("xllamacpp")

from tiny import crab, working_in, write_image_project, write_project

from hermitcrab import exporting
from hermitcrab.cli import main
from hermitcrab.lineage.verify import verify
from hermitcrab.models.formats import open_weights
from hermitcrab.store import Store, read_json

IMAGES, TEXT = "runs/shapes/package", "text/runs/small/package"
EXPORTS = {
    "image-safetensors": (IMAGES, "safetensors", None),
    "image-onnx": (IMAGES, "onnx", "f32"),
    "image-onnx-int8": (IMAGES, "onnx", "int8"),
    "image-openvino": (IMAGES, "openvino", "f16"),
    "text-safetensors": (TEXT, "safetensors", None),
    "text-gguf": (TEXT, "gguf", "Q8_0"),
    "text-onnx": (TEXT, "onnx", None),
    "text-openvino": (TEXT, "openvino", "f16"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A package of each task, and every export of it."""
    folder = tmp_path_factory.mktemp("exports")
    write_image_project(folder)
    write_project(folder / "text")
    with working_in(folder):
        assert main(["run", "shapes.yaml"]) == 0
        with working_in(folder / "text"):
            assert main(["run", "small.yaml"]) == 0
        for name, (package, target, kind) in EXPORTS.items():
            exporting.export(package, target, Path(name), Store(".crab/store"), type=kind)
    return folder


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_was_loaded_back_and_verifies(project, name, capsys):
    record = read_json(project / name / "hermitcrab.json")
    exported, package = record["exported"], read_json(project / EXPORTS[name][0] / "hermitcrab.json")
    assert exported["parity"]["mean_kl"] <= exported["parity"]["tolerance"]["mean_kl"]
    assert exported["format"] == EXPORTS[name][1]
    for field in ("name", "task", "license", "base"):
        assert record[field] == package[field]
    status, out, _ = crab("verify", str(project / name), "--json", capsys=capsys)
    found = json.loads(out)
    assert (status, found["failures"]) == (0, [])
    assert any("made from the package" in check["message"] for check in found["checks"])
    assert verify(project / name / exported["file"]).ok, "the file alone leads to what vouches for it"


@pytest.mark.parametrize("name", ["text-gguf", "text-onnx", "text-openvino", "text-safetensors"])
def test_an_export_is_traced_to_the_package(project, name, capsys):
    status, out, _ = crab("trace", str(project / name), str(project / TEXT), "--json", capsys=capsys)
    found = json.loads(out)
    assert (status, found["verdict"]) == (0, "related")
    wanted = {"text-gguf": "quantized", "text-safetensors": "identical"}.get(name, "re-packaged")
    assert wanted in found["relation"]["names"]


def test_the_bytes_of_safetensors_are_the_package_s(project):
    for name, package in (("image-safetensors", IMAGES), ("text-safetensors", TEXT)):
        assert (project / name / "model.safetensors").read_bytes() == (
            project / package / "model.safetensors"
        ).read_bytes()


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["image-onnx-int8", "image-openvino"])
def test_a_flipped_bit_anywhere_is_found_and_named(project, name, tmp_path):
    for file in sorted(p.relative_to(project / name) for p in (project / name).rglob("*") if p.is_file()):
        shutil.copytree(project / name, tmp_path / "x")
        flipped(tmp_path / "x" / file, 4321)
        found = verify(tmp_path / "x")
        assert not found.ok, file
        assert any(file.name in check.message for check in found.failures), (file, [c.message for c in found.failures])
        shutil.rmtree(tmp_path / "x")


def test_a_record_of_another_license_contradicts_the_package(project, tmp_path):
    from hermitcrab.lineage.keys import default_path
    from hermitcrab.lineage.sign import sign_export

    shutil.copytree(project / "image-onnx", tmp_path / "x")
    with working_in(project):
        record = read_json(tmp_path / "x" / "hermitcrab.json")
        record["license"] = "CC0-1.0"
        (tmp_path / "x" / "hermitcrab.json").write_text(json.dumps(record))
        from hermitcrab.digest import describe_files, tree_files
        from hermitcrab.lineage.exported import statement

        for name in ("claims.jsonl", "signer.pub.pem", "model.sig"):
            (tmp_path / "x" / name).unlink()
        files = describe_files(tmp_path / "x", sorted(tree_files(tmp_path / "x")))
        sign_export(tmp_path / "x", statement(files, record["exported"], "shapes", 0), default_path())
    found = verify(tmp_path / "x")
    assert found.contradiction
    assert any("names another license than the package" in check.message for check in found.failures)


@pytest.mark.parametrize("junk", [None, [], {}, "x", 3, [{"path": 1}], "../../secret"])
def test_a_record_of_any_shape_is_a_failed_check(project, tmp_path, junk):
    shutil.copytree(project / "image-safetensors", tmp_path / "x")
    record = read_json(tmp_path / "x" / "hermitcrab.json")
    for part, keys in ((record, ["name", "license", "base"]), (record["exported"], list(record["exported"]))):
        for key in keys:
            kept = part[key]
            part[key] = junk
            (tmp_path / "x" / "hermitcrab.json").write_text(json.dumps(record))
            part[key] = kept
            assert not verify(tmp_path / "x").ok, key


def test_without_a_signature_it_is_said_what_is_known(project, tmp_path):
    shutil.copytree(project / "image-onnx", tmp_path / "x")
    for name in ("claims.jsonl", "signer.pub.pem", "model.sig"):
        (tmp_path / "x" / name).unlink()
    found = verify(tmp_path / "x")
    assert not found.ok
    assert any("unsigned" in check.message for check in found.failures)
    assert [check.ok for check in found.checks if check.check == "package"] == [True]


def test_what_cannot_be_is_refused_with_what_can(here, capsys):
    for arguments, says in (
        (("--to", "gguf"), "can be exported to: safetensors, onnx, openvino"),
        (("--to", "onxx"), "did you mean `onnx`"),
        (("--to", "onnx", "--type", "Q4_0"), "onnx is written as f32, int8"),
    ):
        status, _, err = crab("export", IMAGES, *arguments, "--out", "new", capsys=capsys)
        assert (status, says in err) == (2, True), err
    status, _, err = crab("export", IMAGES, "--to", "onnx", "--out", "image-onnx", capsys=capsys)
    assert status == 2
    assert "is there already" in err
    assert not Path("new").exists()


def test_a_package_that_does_not_verify_is_exported_only_aloud(here, capsys):
    flipped(here / IMAGES / "README.md", 50)
    status, _, err = crab("export", IMAGES, "--to", "onnx", "--out", "new", capsys=capsys)
    assert status == 1
    assert "README.md" in err
    status, out, _ = crab(
        "export", IMAGES, "--to", "safetensors", "--out", "new", "--unverified", "--json", capsys=capsys
    )
    told = json.loads(out)
    assert (status, told["verified"]) == (0, False)
    assert any("nothing vouches" in note for note in told["notes"])
    assert not verify(here / "new").ok


@pytest.mark.parametrize("where", ["write", "compare"])
def test_an_export_that_is_stopped_leaves_nothing(here, monkeypatch, where):
    from hermitcrab.exporting import writing

    real = getattr(writing, where)

    def stopped(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, where, stopped)
    before = set(here.iterdir())
    with pytest.raises(KeyboardInterrupt):
        exporting.export(IMAGES, "onnx", here / "new", Store(".crab/store"))
    assert set(here.iterdir()) == before


def test_an_export_that_is_another_model_fails_and_leaves_nothing(here, monkeypatch, capsys):
    import numpy as np

    from hermitcrab.models.formats import onnx_writer

    write = onnx_writer.write

    def wrong(path, graph, metadata):
        import torch

        with torch.no_grad():
            graph.module.model.classifier.weight.mul_(-1)
        return write(path, graph, metadata)

    monkeypatch.setattr(onnx_writer, "write", wrong)
    status, _, err = crab("export", IMAGES, "--to", "onnx", "--out", "new", capsys=capsys)
    assert status == 1
    assert "it is another model" in err
    assert not Path("new").exists()
    assert np.isfinite(open_weights(here / "image-onnx").read("classifier.weight")).all()
