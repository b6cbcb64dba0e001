"""ONNX: a torch model as one file, in float32 or with weights of eight bits. The same model gives the same bytes.

Notable:
- torch's exporter notes beside each node where in which source file it came from. Paths of a machine do not belong in a model:
  they are taken out, and with them what would differ from machine to machine.
- What the exporter folded (a transposed weight becomes `val_28`) is named after the layer that takes it, so the tensors of the
  file go by the names that they have in the model.
- Above `LARGEST_MESSAGE` the numbers lie in a file beside (`model.onnx.data`), written one tensor at a time.
https://github.com/onnx/onnx/blob/main/docs/IR.md; https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import ast
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.errors import HermitcrabError

if TYPE_CHECKING:
    from torch import nn

OPSET = 20
LARGEST_MESSAGE = 3 << 29  # bytes: protobuf ends at 2 GiB, and nodes and names need room too
SMALLEST_OUTSIDE = 1 << 10  # bytes of a tensor that goes into the file beside
WRAPPED = "model"  # attribute under which a graph's module holds the model


@dataclass(frozen=True)
class Graph:
    """What is exported.

    Attributes:
        module: takes `inputs` in their order (`forward(self, *values)`) and gives the tensors that `outputs` names; the model is
            its attribute `model`.
        inputs: name → an example (of two rows at least, so that no size is taken for a constant).
        sizes: input → axis → the name of a size that may change from call to call.
    """

    module: nn.Module
    inputs: dict[str, Any]
    outputs: tuple[str, ...]
    sizes: dict[str, dict[int, str]]


def write(path: Path, graph: Graph, metadata: Mapping[str, str]) -> list[Path]:
    """One ONNX file (float32), whole or not at all.

    Args:
        metadata: what the file says of itself (`metadata_props`).

    Returns:
        The files, that to open first.

    Raises:
        HermitcrabError: a model that torch cannot say as one graph.
    """
    model = _exported(graph)
    _renamed(model)
    _cleaned(model, metadata)
    return save(model, path)


def save(model: Any, path: Path) -> list[Path]:
    """An onnx_ir model at `path`, and beside it its numbers where they are too many for one message."""
    import onnx_ir as ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    outside = f"{path.name}.data" if size > LARGEST_MESSAGE else None
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx-") as scratch:
        made = Path(scratch) / path.name
        if outside:
            ir.save(model, made, external_data=outside, size_threshold_bytes=SMALLEST_OUTSIDE)
        else:
            made.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
        return _moved([*([made.with_name(outside)] if outside else []), made], path.parent)


def _moved(made: list[Path], folder: Path) -> list[Path]:
    """Files under their final names, that to open last to come and first to be told."""
    for file in made:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(file, folder / file.name)
    return [folder / file.name for file in reversed(made)]


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter's and the quantizer's advice to their own developers, left out."""
    names = ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir", "root")
    loggers = [logging.getLogger(name) if name != "root" else logging.getLogger() for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _exported(graph: Graph) -> Any:
    import torch

    named = {size for axes in graph.sizes.values() for size in axes.values()}
    sizes = {name: torch.export.Dim(name) for name in sorted(named)}
    shapes = tuple(
        {axis: sizes[name] for axis, name in graph.sizes.get(key, {}).items()} or None for key in graph.inputs
    )
    graph.module.eval()
    try:
        with quiet(), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                graph.module, tuple(graph.inputs.values()), dynamo=True, dynamic_shapes=(shapes,),
                input_names=list(graph.inputs), output_names=list(graph.outputs), opset_version=OPSET, verbose=False,
            )  # fmt: skip
    except Exception as error:
        raise HermitcrabError(f"onnx: torch cannot export this model as one graph: {_why(error)}") from error
    assert program is not None
    return program.model


def _why(error: Exception) -> str:
    """What lies at the bottom of an exporter's error, whose own words are advice."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return " ".join(str(cause).split())[:300] or type(cause).__name__


def _scope(node: Any) -> str:
    """The layer that a node comes from, by its name in the model; empty where the exporter does not say."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    except (ValueError, SyntaxError):
        return ""
    path = next((s for s in reversed(scopes[:-1]) if s), "")
    return path.removeprefix(f"{WRAPPED}.") if path.startswith(f"{WRAPPED}.") else ""


def _renamed(model: Any) -> None:
    """Tensors and nodes by their names in the model."""
    graph = model.graph
    for name in list(graph.initializers):
        if name.startswith(f"{WRAPPED}."):
            graph.initializers[name].name = name.removeprefix(f"{WRAPPED}.")
    taken = set(graph.initializers)
    products = ("MatMul", "Gemm", "Conv", "ConvTranspose")
    for node in graph:
        scope = _scope(node)
        if not scope:
            continue
        if node.op_type in products:
            for value, kind in zip(node.inputs[1:], ("weight", "bias"), strict=False):
                wanted = f"{scope}.{kind}"
                if value is not None and value.is_initializer() and "." not in value.name and wanted not in taken:
                    value.name = wanted
                    taken.add(wanted)
        node.name = f"{scope}/{node.name}"


def _cleaned(model: Any, metadata: Mapping[str, str]) -> None:
    """Nothing of the machine and of the exporter's notes, and what the file says of itself."""
    for part in (model, model.graph, *model.graph, *model.graph.initializers.values()):
        part.metadata_props.clear()
        part.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *(v for node in model.graph for v in node.outputs)):
        value.metadata_props.clear()
        value.doc_string = None
    used = {node.domain for node in model.graph} | {""}
    for domain in [name for name in model.opset_imports if name not in used]:
        del model.opset_imports[domain]
    model.graph.name = "main"
    model.producer_name, model.producer_version = "hermitcrab", version("hermitcrab")
    model.metadata_props.update(dict(sorted(metadata.items())))


# Eight bits


PRODUCTS = ("MatMul", "Gemm", "Conv")
KINDS = {"FLOAT": "F32", "INT8": "I8", "UINT8": "U8", "INT32": "I32"}
BESIDE = ("_scale", "_zero_point")  # names of what belongs to a quantized tensor
NNCF = (
    "q_output_",
    "scale_",
    "zero_point_",
)  # before the name of a tensor that it quantized: numbers, scales, zero points


def quantize_dynamic(source: Path, path: Path, metadata: Mapping[str, str], wide: tuple[str, ...] = ()) -> list[Path]:
    """Weights in int8 by output channel (round to nearest, symmetric); activations rounded anew at each call.

    Args:
        wide: names of nodes that stay in float32.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    kept = [
        *wide,
        *(f"{name}_MatMul" for name in wide),
    ]  # a Gemm is taken apart first, and its product goes by this name

    def make(made: Path, outside: bool) -> None:
        quantize(
            source, made, op_types_to_quantize=list(PRODUCTS), per_channel=True, weight_type=QuantType.QInt8,
            nodes_to_exclude=kept, use_external_data_format=outside,
        )  # fmt: skip

    return _quantized(source, path, metadata, make)


def quantize_static(
    source: Path, path: Path, metadata: Mapping[str, str], batches: Iterator[dict[str, Any]], method: str = "MinMax",
    wide: tuple[str, ...] = (),
) -> list[Path]:  # fmt: skip
    """Weights in int8 by output channel, activations in eight bits by ranges seen on `batches` (QuantizeLinear, DequantizeLinear).

    Where the graph has attention, NNCF does it, for outliers must first be moved from activations into weights (SmoothQuant, Xiao et al.
    2022, arXiv:2211.10438): by ranges alone MiniLM's output keeps a cosine of .84, so of .99. It rounds tables of embeddings too.

    Args:
        batches: inputs of the graph, float32, as the model is given them.
        method: how a range follows from what was seen: MinMax, Entropy or Percentile; without attention.
        wide: names of nodes that stay in float32.
    """
    if _weightless(source):
        return _quantized(source, path, metadata, partial(_balanced, source, list(batches), wide))
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            return next(batches, None)

    def make(made: Path, outside: bool) -> None:
        prepared = made.with_name("prepared.onnx")
        quant_pre_process(source, prepared, skip_symbolic_shape=True, save_as_external_data=outside)
        quantize(
            prepared, made, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=list(PRODUCTS), per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod[method],
            nodes_to_exclude=[*wide, *_weightless(prepared)], use_external_data_format=outside,
        )  # fmt: skip

    return _quantized(source, path, metadata, make)


def _balanced(source: Path, batches: list[dict[str, Any]], wide: tuple[str, ...], made: Path, outside: bool) -> None:
    import nncf
    import onnx

    nncf.set_log_level(logging.CRITICAL)
    kept = nncf.IgnoredScope(names=list(wide)) if wide else None
    with redirect_stdout(io.StringIO()):  # its bars
        model = nncf.quantize(
            onnx.load(source), nncf.Dataset(batches), preset=nncf.QuantizationPreset.MIXED, model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches), ignored_scope=kept,
        )  # fmt: skip
    onnx.save(model, made, save_as_external_data=outside)


def _quantized(source: Path, path: Path, metadata: Mapping[str, str], make: Any) -> list[Path]:
    import onnx_ir as ir

    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(file.stat().st_size for file in source.parent.glob(f"{source.name}*"))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx-") as scratch:
        made = Path(scratch) / "quantized.onnx"
        try:
            with quiet():
                make(made, size > LARGEST_MESSAGE)
                model = ir.load(made)
        except Exception as error:
            raise HermitcrabError(f"onnx: the library cannot quantize {source.name}: {_why(error)}") from error
        _plainly_named(model)
        _cleaned(model, metadata)
        return save(model, path)


def _plainly_named(model: Any) -> None:
    """Quantized weights under the names of those that they were made from; scales and zero points behind it."""
    graph = model.graph
    taken = {*graph.initializers, *(value.name for node in graph for value in node.outputs)}
    for whole in [name for name in graph.initializers if name.startswith(NNCF[0]) and name.endswith("_1")]:
        stem = whole.removeprefix(NNCF[0])
        plain = stem.removesuffix("_1")
        if plain not in taken:
            for start, end in zip(NNCF, ("", *BESIDE), strict=True):
                graph.initializers[start + stem].name = plain + end
    for value in [v for v in graph.initializers.values() if v.name.endswith(("_quantized", "_Transposed"))]:
        whole, stem = value.name, value.name.removesuffix("_quantized")
        plain = stem.removesuffix("_Transposed")
        if plain in taken:
            continue
        value.name = plain
        for end in BESIDE:
            for known in (whole + end, stem + end):
                if known in graph.initializers:
                    graph.initializers[known].name = plain + end
                    break


def narrowed(path: Path) -> list[str]:
    """Names of the nodes of a float32 file that eight bits would be given to, in the file's order."""
    return [name for name, weighted in _products(path) if weighted]


def _weightless(path: Path) -> list[str]:
    """Attention's own products: no weights, and outliers on both sides."""
    return [name for name, weighted in _products(path) if not weighted]


def _products(path: Path) -> list[tuple[str, bool]]:
    """Name of each product, and whether it is by weights."""
    import onnx_ir as ir

    return [
        (str(node.name), any(v is not None and v.is_initializer() for v in node.inputs[1:2]))
        for node in ir.load(path).graph if node.op_type in PRODUCTS
    ]  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor of weights as it stands in a file. `bits`: of one weight, scales and zero points included."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: float


def stored(path: Path) -> list[Stored]:
    """The tensors of a file that `write` or one of the quantizers left; no shapes, indices and scales."""
    import onnx_ir as ir

    values: dict[str, Any] = {name: value.const_value for name, value in ir.load(path).graph.initializers.items()}
    found = []
    for name, tensor in values.items():
        belongs = [values[name + end] for end in BESIDE if name + end in values]
        helper = any(name.endswith(end) and name.removesuffix(end) in values for end in BESIDE)
        if helper or tensor.dtype.name not in KINDS or not tensor.shape or min(tensor.shape) < 1:
            continue
        if (tensor.dtype.name != "FLOAT" and not belongs) or name.endswith(BESIDE):
            continue
        size = sum(part.nbytes for part in (tensor, *belongs))
        found.append(Stored(name, KINDS[tensor.dtype.name], tuple(tensor.shape), 8 * size / tensor.size))
    return found
