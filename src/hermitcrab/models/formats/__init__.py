"""The door to weight files: `open_weights` for a file or a folder, whatever the format."""

from __future__ import annotations

from pathlib import Path

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats.weights import OpenWeights, TensorInfo, Weights

__all__ = ["PICKLES", "OpenWeights", "TensorInfo", "Weights", "is_gguf", "open_weights", "weight_file"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
NO_MODELS = ("adapter_model.safetensors", "openvino_tokenizer.xml", "openvino_detokenizer.xml")


def weight_file(path: Path) -> Path:
    """The file that a model's weights begin with: `path` itself, or the weights (or their index) in a folder."""
    from hermitcrab.models.formats.safetensors import INDEX

    if not path.is_dir():
        return path
    for name in ("model.safetensors", INDEX):
        if (path / name).is_file() or (path / name).is_symlink():
            return path / name
    for pattern in ("*.gguf", "*.safetensors", "pytorch_model.bin", "*.pt", "*.pth", "*.onnx", "*.xml", "*.npz"):
        found = sorted(p for p in path.glob(pattern) if p.name not in NO_MODELS)
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(p.name for p in found[:6])
            raise HermitcrabError(f"{path}: holds several models ({names}); give the path of one of them")
    if (path / "adapter_model.safetensors").is_file():
        raise HermitcrabError(f"{path}: is an adapter (adapter_model.safetensors), not a whole model; merge it first")
    if (path / "pytorch_model.bin.index.json").is_file():
        raise HermitcrabError(f"{path}: is a sharded pickle; use a release in safetensors")
    there = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise HermitcrabError(f"{path}: holds no weights; expected model.safetensors, {INDEX} or one .gguf; found {there}")


def open_weights(path: Path) -> Weights:
    """The tensors of a file or folder: safetensors (one or sharded), GGUF, ONNX, OpenVINO, NumPy, or a checkpoint of tensors only.

    Raises:
        HermitcrabError: no such file, no known format, or a file that lies about itself.
    """
    from hermitcrab.models.formats import gguf, safetensors

    path = Path(path)
    if not path.exists() and not path.is_symlink():
        raise HermitcrabError(f"{path}: no such file or folder")
    file = weight_file(path)
    if file.name.endswith(".index.json"):
        return safetensors.read_sharded(file.parent, file.name)
    if file.suffix == ".safetensors":
        return safetensors.read_file(file)
    if file.suffix == ".onnx":
        from hermitcrab.models.formats import onnx

        return onnx.read_file(file)
    if file.suffix == ".xml":
        from hermitcrab.models.formats import openvino

        return openvino.read_file(file)
    if file.suffix == ".bin" and file.with_suffix(".xml").exists():
        raise HermitcrabError(
            f"{file}: holds the numbers of an OpenVINO model; give its graph, {file.with_suffix('.xml').name}"
        )
    if file.suffix in (".npz", ".npy"):
        from hermitcrab.models.formats import npz

        return npz.read_file(file)
    if file.suffix in PICKLES:
        return _checkpoint(file, _begins(file))
    if is_gguf(file):
        return gguf.read_file(file)
    raise HermitcrabError(
        f"{file}: is no weight file that hermitcrab reads; expected .safetensors, .gguf, .onnx, .xml (OpenVINO), .npz, .pt or a folder"
    )


def _checkpoint(file: Path, begins: bytes) -> Weights:
    """PyTorch's zip files are read without torch; what is older goes through torch in a process of its own."""
    if begins != b"PK\x03\x04":
        from hermitcrab.models.formats import pickle

        return pickle.read_file(file)
    from hermitcrab.models.formats import pytorch
    from hermitcrab.models.formats.weights import open_checked

    with open_checked(file) as handle:
        return pytorch.read_file(file, handle)


def is_gguf(file: Path) -> bool:
    """By its ending, or by its first bytes."""
    return file.suffix == ".gguf" or _begins(file) == b"GGUF"


def _begins(file: Path) -> bytes:
    from hermitcrab.models.formats.weights import open_checked

    with open_checked(file) as handle:
        return handle.read(0, min(4, handle.size), "the first bytes").tobytes()
