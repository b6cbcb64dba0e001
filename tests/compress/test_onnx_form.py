"""An image model in ONNX, through every stage: made, asked, compared, shipped, verified."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tiny import IMAGE_RECIPE, crab, working_in, write_image_project

from hermitcrab.cli import main
from hermitcrab.compress import load_form
from hermitcrab.models.formats import open_weights
from hermitcrab.store import read_json

KINDS = ("f32", "int8", "int8-static")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    write_image_project(folder, IMAGE_RECIPE + f"compress: {{onnx: [{', '.join(KINDS)}]}}\n")
    with working_in(folder):
        assert main(["run", "shapes.yaml"]) == 0
    return folder


def test_every_kind_is_compared_with_the_model(project):
    package = project / "runs" / "shapes" / "package"
    entries = {entry["type"]: entry for entry in read_json(package / "hermitcrab.json")["compressed"]}
    assert tuple(entries) == KINDS
    for kind, entry in entries.items():
        assert entry["file"] == f"onnx/shapes-{kind}.onnx"
        assert (package / entry["file"]).stat().st_size == entry["size"]
        assert entry["parity"]["n"] == 60
    assert entries["f32"]["parity"]["max_abs_logit_difference"] < 1e-4
    assert entries["f32"]["parity"]["flips"] == 0
    assert entries["f32"]["bits_per_weight"] == 32
    for kind in KINDS[1:]:
        assert entries[kind]["tensors"]["I8"] == 3
        assert entries[kind]["bits_per_weight"] < 16
        assert 0 < entries[kind]["parity"]["mean_kl"] < 0.5
    assert entries["int8-static"]["method"]["calibration_rows"] == 64
    assert "calibration_rows" not in entries["int8"]["method"]


def test_the_package_verifies_and_the_files_say_what_they_are(here, capsys):
    package = here / "runs" / "shapes" / "package"
    status, out, _ = crab("verify", str(package), capsys=capsys)
    assert status == 0, out
    record = read_json(package / "hermitcrab.json")
    said = load_form("onnx").said(package / "onnx" / "shapes-int8.onnx")
    assert said["license"] == record["license"]
    assert said["base_digest"] == record["base"]["digest"]
    file = package / "onnx" / "shapes-int8.onnx"
    file.write_bytes(file.read_bytes().replace(b"license", b"licence", 1))
    status, out, _ = crab("verify", str(package), capsys=capsys)
    assert status == 1
    assert "shapes-int8.onnx: changed after signing" in out


def test_int8_is_traced_to_the_model_that_it_was_made_from(project):
    package = project / "runs" / "shapes" / "package"
    ours, theirs = (open_weights(p) for p in (package / "onnx" / "shapes-int8-static.onnx", package))
    difference = ours.read("layers.0.weight") - theirs.read("layers.0.weight")
    assert abs(difference).max() < 0.01 * abs(theirs.read("layers.0.weight")).max() + 1e-3


def test_what_was_made_is_not_made_again(here, capsys):
    status, _, err = crab("run", "shapes.yaml", capsys=capsys)
    assert status == 0
    assert "compress: reused" in err


def test_the_layers_that_hurt_most_stay_wide_until_the_target_is_met(project, tmp_path):
    """Of a bound on KL between what rounding costs and nothing, some layers and not all are kept."""
    from hermitcrab.compress import Source, about
    from hermitcrab.compress.onnx import Onnx
    from hermitcrab.data.tables import schema
    from hermitcrab.recipe import Compress, Evaluate, Train
    from hermitcrab.serve.opening import open_model
    from hermitcrab.store import Store

    opened = open_model(str(project / "runs" / "shapes" / "package"), Store(project / ".crab" / "store"))
    none = schema("text").empty_table()

    def made(limit: float | None):
        target = None if limit is None else {"max_loss": 0.01, "max_kl": limit}
        source = Source(
            model=opened.path, name="m", task=opened.task, start=opened.start, base_start=None, train=Train(),
            evaluate=Evaluate(), compress=Compress.model_validate({"onnx": ["int8"], "target": target}), base=opened.base,
            about=about("m", "MIT", opened.base), calibration=none, validation=none,
        )  # fmt: skip
        folder = tmp_path / str(limit)
        folder.mkdir()
        return Onnx(source).make("int8", folder)

    free = made(None)
    assert sum(t.dtype == "I8" for t in free.tensors) == 3
    costs = made(1e-12).told["mixture"]
    assert len(costs["widened"]) == 3, "nothing but float32 meets it"
    between = max(costs["kl_alone"].values()) * 0.9
    told = made(between).told["mixture"]
    assert 0 < len(told["widened"]) < 3
    assert told["widened"][0] == max(told["kl_alone"], key=told["kl_alone"].get)


@pytest.mark.parametrize(("margin", "kept"), [(0.9, 0), (1e-6, 3)])
def test_without_a_bound_on_kl_the_loss_on_validation_rows_decides(project, tmp_path, margin, kept):
    import pyarrow.parquet as pq

    from hermitcrab.compress import Source, about
    from hermitcrab.compress.onnx import Onnx
    from hermitcrab.data.tables import schema
    from hermitcrab.pipeline import find_run
    from hermitcrab.recipe import Compress, Evaluate, Train
    from hermitcrab.serve.opening import open_model
    from hermitcrab.store import Store

    store = Store(project / ".crab" / "store")
    opened = open_model(str(project / "runs" / "shapes" / "package"), store)
    rows = pq.read_table(find_run("shapes", store)[1]["prepare"].payload / "validation.parquet")
    source = Source(
        model=opened.path, name="m", task=opened.task, start=opened.start, base_start=None, train=Train(), evaluate=Evaluate(),
        compress=Compress.model_validate({"onnx": ["int8"], "target": {"max_loss": margin}}), base=opened.base,
        about=about("m", "MIT", opened.base), calibration=schema("text").empty_table(), validation=rows, metric="accuracy",
    )  # fmt: skip
    told = Onnx(source).make("int8", tmp_path).told["mixture"]
    assert len(told["widened"]) == kept
    assert (told["max_loss"], told["validation_rows"]) == (margin, rows.num_rows)
    assert "max_kl" not in told
