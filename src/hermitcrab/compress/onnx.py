"""ONNX: one graph that onnxruntime and OpenVINO run, in float32 or with weights in int8.

`int8` rounds activations anew at each call; `int8-static` by ranges seen on training rows, given to the model by the task itself: of
transformers with outliers moved into the weights before (SmoothQuant).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.compress import Made, Source, Tensor
from hermitcrab.digest import describe_files
from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.models.formats import onnx_check

if TYPE_CHECKING:
    from hermitcrab.recipe import Compress
    from hermitcrab.tasks import Start

WORDS = {
    "name": "name",
    "license": "license",
    "base_digest": "hermitcrab.base.digest",
    "base_name": "base_model",
    "base_uri": "hermitcrab.base.uri",
    "base_revision": "hermitcrab.base.revision",
    "package_digest": "hermitcrab.package.digest",
}  # of `Source.about` → key of the file's metadata
BITS = {"f32": 32.0, "int8": 8.5, "int8-static": 8.5}
RANGES = "MinMax"


class Onnx:
    format = "onnx"

    @classmethod
    def check(cls, part: Compress, base: dict[str, Any], path: Path) -> None:
        """The libraries that write it: nothing is trained for a file that could not be made."""
        for module in ("onnx", "onnxscript", "onnxruntime", "nncf"):
            needs(module, "compress")

    @classmethod
    def kinds(cls, part: Compress) -> list[str]:
        return list(part.onnx)

    @classmethod
    def bits(cls, part: Compress, kind: str) -> float:
        return BITS[kind]

    def __init__(self, source: Source):
        self.source = source

    def make(self, kind: str, folder: Path) -> Made:
        from hermitcrab.models.formats import onnx_writer

        path, wide = folder / f"{self.source.name}-{kind}.onnx", folder / "wide" / "f32.onnx"
        told: dict[str, Any] = {"opset": onnx_writer.OPSET}
        if kind == "f32":
            files = self._write(path)
        else:
            if not wide.exists():
                self._write(wide)
            static = kind == "int8-static"
            batches = self._batches(wide) if static else []

            def write(path: Path, kept: tuple[str, ...]) -> list[Path]:
                if static:
                    return onnx_writer.quantize_static(wide, path, self.metadata(), iter(batches), RANGES, kept)
                return onnx_writer.quantize_dynamic(wide, path, self.metadata(), kept)

            kept: tuple[str, ...] = ()
            told |= {"weights": "int8 by channel", "activations": "uint8, ranges of each call"}
            if static:
                told |= {"activations": "uint8, ranges seen before", "ranges": RANGES,
                         "calibration_rows": self.source.calibration.num_rows}  # fmt: skip
            if self.source.compress.target is not None:
                from hermitcrab.compress.onnx_mixing import OnnxMixture

                kept, told["mixture"] = OnnxMixture(self.source, wide, write).fewest()
            files = write(path, kept)
        tensors = tuple(
            Tensor(t.name, t.dtype, t.shape, t.bits, _reason(t.dtype, t.shape) if kind != "f32" else None)
            for t in onnx_writer.stored(path)
        )
        return Made(tuple(file.name for file in files), tensors, told)

    def _write(self, path: Path) -> list[Path]:
        import torch

        from hermitcrab.models.formats import onnx_writer
        from hermitcrab.models.onnx_graphs import graph_of
        from hermitcrab.tasks import load_task, make_task

        task = make_task(self.source.task, self.source.start, self.source.train)
        model = task.model(torch.float32)
        return onnx_writer.write(path, graph_of(model, load_task(self.source.task).kind), self.metadata())

    def metadata(self) -> dict[str, str]:
        """License, base and digests; labels and preprocessing as the model's folder has them."""
        found = {key: self.source.about[word] for word, key in WORDS.items() if word in self.source.about}
        return found | {"task": self.source.task} | beside(self.source.model)

    def _batches(self, wide: Path) -> list[dict[str, Any]]:
        """What the model is given when the task asks it the calibration rows."""
        from hermitcrab.models.runtimes.onnx import OnnxModel
        from hermitcrab.tasks import make_task

        if not self.source.calibration.num_rows:
            raise HermitcrabError("compress.onnx: int8-static needs training rows to see ranges on, and there is none")
        task = make_task(self.source.task, self.source.start, self.source.train)
        seen: list[dict[str, Any]] = []
        model = OnnxModel(wide)
        model.given = seen.append
        task.predict(model, self.source.calibration, self.source.evaluate)
        return seen

    def start(self, kind: str, folder: Path, made: Made) -> Start:
        from hermitcrab.tasks import Start

        base = {
            **self.source.base, "kind": "onnx", "name": made.files[0], "files": describe_files(folder, list(made.files))
        }  # fmt: skip
        return Start(base, folder / made.files[0], None, self.source.start.fitted)

    @staticmethod
    def said(path: Path) -> dict[str, str | None]:
        found = onnx_check.check_file(path).metadata
        return {word: found.get(key) for word, key in WORDS.items()}

    @classmethod
    def pace(cls, start: Start) -> Callable[[], tuple[int, str]] | None:
        return None


def beside(folder: Path) -> dict[str, str]:
    """Labels and preprocessing of a model's folder, each as one JSON text."""
    found = {}
    for name, file, keys in (
        ("labels", "config.json", ("id2label",)),
        ("preprocessing", "preprocessor_config.json", ("size", "rescale_factor", "image_mean", "image_std")),
    ):
        if (folder / file).is_file():
            values = json.loads((folder / file).read_text(encoding="utf-8"))
            kept = {key: values[key] for key in keys if key in values}
            if kept:
                found[name] = json.dumps(kept.get("id2label", kept), sort_keys=True, ensure_ascii=False)
    return found


def _reason(dtype: str, shape: tuple[int, ...]) -> str | None:
    if dtype in ("I8", "U8"):
        return None
    if dtype == "I32":
        return "bias, in I32"
    return "vector, in F32" if len(shape) < 2 else "left wide, in F32"
