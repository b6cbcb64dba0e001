"""Pickled checkpoints (`pytorch_model.bin`, `.pt`, `.pth`): refused unless `torch.load(weights_only=True)` takes them.

That reader runs in a process of its own (`python -m hermitcrab.models.formats.pickle IN OUT SIZE`) with limits on
memory, time and file size, and leaves a safetensors file in the user's cache, named by the digest of the pickle;
everything else reads that one.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from hermitcrab.digest import digest_file
from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.models.formats import safetensors
from hermitcrab.models.formats.weights import Weights, open_checked
from hermitcrab.progress import progress
from hermitcrab.references import cache_folder

SECONDS = 1800
ROOM = 16 << 30  # address space beyond the file's size: torch maps much that it never uses


def read_file(path: Path) -> Weights:
    """The tensors of a pickled state dict, through a safetensors copy in the user's cache.

    Raises:
        HermitcrabError: the pickle holds anything but tensors, or does not load within the limits.
    """
    with open_checked(path) as handle:
        size = handle.size
    with progress(f"reading {path.name}", size, "bytes") as bar:
        digest = digest_file(path, bar.add)
    copy = cache_folder("pickle", digest.removeprefix("sha256:")) / "model.safetensors"
    if not copy.is_file():
        needs("torch", "train")
        _convert(path, copy, digest, size)
    return safetensors.read_file(copy)


def _convert(path: Path, copy: Path, digest: str, size: int) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=copy.parent) as folder:
        out = Path(folder) / copy.name
        command = [
            sys.executable,
            "-P",
            "-m",
            "hermitcrab.models.formats.pickle",
            str(path.resolve()),
            str(out),
            str(size),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise HermitcrabError(f"{path}: this pickle did not load within {SECONDS} s; refused") from error
        if done.returncode or not out.is_file():
            lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
            why = lines[-1][:200] if lines else f"the reader ended with status {done.returncode}"
            raise HermitcrabError(
                f"{path}: refused, because this pickle holds more than tensors or is damaged ({why}); "
                "use a release in safetensors"
            )
        if digest_file(path) != digest:
            raise HermitcrabError(f"{path}: the file changed while it was read")
        os.replace(out, copy)


def main(source: str, target: str, size: str) -> None:
    """In the process with limits: load tensors only, write them as safetensors."""
    limit = 4 * int(size) + ROOM
    for what, most in ((resource.RLIMIT_AS, limit), (resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_FSIZE, limit)):
        resource.setrlimit(what, (most, most))
    import torch
    from safetensors.torch import save_file

    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever a hostile pickle raises becomes one line
        sys.exit(" ".join(str(error).split())[:160] or type(error).__name__)
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) and v.layout is torch.strided and not v.is_quantized
        for k, v in state.items()
    ):
        sys.exit("it is no mapping of names to plain tensors")
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
