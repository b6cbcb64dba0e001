"""OpenVINO's representation of a model through its ONNX graph: for models that have no form of their own there (images, encoders)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.errors import HermitcrabError, needs

if TYPE_CHECKING:
    from hermitcrab.compress import Made, Source

NAME = "openvino_model.xml"
SAID = "hermitcrab"  # the part of `rt_info` that is ours
KINDS = ("f16", "f32", "int8")
BITS = {"F32": 32.0, "F16": 16.0, "I8": 8.0, "U8": 8.0}


def make(source: Source, kind: str, folder: Path) -> Made:
    """`openvino_model.xml` and `.bin` in `folder`; `kind`: f32, f16 or int8 (weights by row, with scale and zero point)."""
    from hermitcrab.compress import Made, Tensor
    from hermitcrab.compress.onnx import Onnx
    from hermitcrab.models.formats import open_weights

    if kind not in KINDS:
        raise HermitcrabError(f"openvino: a model of {source.task} is written as {', '.join(KINDS)}. Received: {kind}")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-") as scratch:
        onnx = Onnx(source)
        made = onnx.make("f32", Path(scratch))
        convert(Path(scratch) / made.files[0], folder / NAME, kind, onnx.metadata())
    weights = open_weights(folder / NAME)
    tensors = tuple(
        Tensor(info.name, info.dtype, info.shape, BITS.get(info.dtype, 32.0))
        for info in weights.tensors.values() if info.dtype in BITS and info.shape
    )  # fmt: skip
    return Made((NAME, NAME.replace(".xml", ".bin")), tensors, {"through": "ONNX", **made.told})


def convert(onnx: Path, path: Path, kind: str, metadata: dict[str, str]) -> None:
    """An ONNX file as OpenVINO's representation at `path`, whole or not at all."""
    needs("openvino", "compress")
    import openvino as ov

    try:
        model = ov.convert_model(str(onnx))
        if kind == "int8":
            model = _narrowed(model)
        for key, value in sorted(metadata.items()):
            model.set_rt_info(value, [SAID, key])
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".openvino-") as scratch:
            made = Path(scratch) / path.name
            ov.save_model(model, str(made), compress_to_fp16=kind == "f16")
            os.replace(made.with_suffix(".bin"), path.with_suffix(".bin"))
            os.replace(made, path)
    except RuntimeError as error:
        raise HermitcrabError(f"openvino: cannot convert the model: {' '.join(str(error).split())[:300]}") from error


def _narrowed(model: Any) -> Any:
    import contextlib
    import io
    import logging

    needs("nncf", "compress")
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
