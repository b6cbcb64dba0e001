"""GGUF: one file that llama.cpp serves, with tokenizer, chat template and settings in its metadata."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.compress import Made, Source, Tensor
from hermitcrab.compress.speed import threads
from hermitcrab.digest import describe_files
from hermitcrab.errors import needs
from hermitcrab.models.formats import ggml_native, gguf, gguf_writer
from hermitcrab.store import write_atomic

if TYPE_CHECKING:
    from hermitcrab.models.to_gguf import Export
    from hermitcrab.recipe import Compress
    from hermitcrab.tasks import Start

SETTINGS = "generation_config.json"  # GGUF has no keys for it; it lies beside the file while that is asked
WORDS = {
    "license": "general.license",
    "base_digest": "hermitcrab.base.digest",
    "base_name": "general.base_model.0.name",
    "base_uri": "hermitcrab.base.uri",
    "base_revision": "general.base_model.0.version",
    "package_digest": "hermitcrab.package.digest",
}  # of `Source.about` → GGUF's own key, or ours


class Gguf:
    format = "gguf"
    runtime = "llama.cpp"

    @classmethod
    def check(cls, part: Compress, base: dict[str, Any], path: Path) -> None:
        """An architecture or a tokenizer that GGUF has no words for, a type whose quantizer is not here."""
        if any(kind.removesuffix(gguf_writer.CALIBRATED) in gguf_writer.NATIVE for kind in part.gguf):
            needs("xllamacpp", "compress")
        from hermitcrab.models import ggml, to_gguf
        from hermitcrab.models.base import read_config
        from hermitcrab.models.formats import open_weights
        from hermitcrab.models.load import load_text

        if base["kind"] == "scratch":
            config = base["configuration"]
        else:
            config = ggml.configuration(open_weights(path)) if base["kind"] == "gguf" else read_config(path)
        to_gguf.architecture(config)
        to_gguf.tokenizer_keys(load_text(base, path))

    @classmethod
    def kinds(cls, part: Compress) -> list[str]:
        return list(part.gguf)

    @classmethod
    def bits(cls, part: Compress, kind: str) -> float:
        return gguf_writer.BITS[kind.removesuffix(gguf_writer.CALIBRATED)]

    def __init__(self, source: Source):
        self.source = source

    def make(self, kind: str, folder: Path) -> Made:
        from hermitcrab.models.to_gguf import Export

        export = Export(self.source.model, metadata(self.source.about))
        file, dtype = folder / f"{self.source.name}-{kind}.gguf", kind.removesuffix(gguf_writer.CALIBRATED)
        told = self._write(export, kind, dtype, file, {})
        wider: dict[str, str] = {}
        if self.source.compress.target is not None and gguf_writer.BITS[dtype] < 16:
            wider, mixed = self._mixture(export, kind, dtype, file)
            if wider:
                told = self._write(export, kind, dtype, file, wider)
            told |= {"mixed": mixed}
        if (self.source.model / SETTINGS).exists():
            write_atomic(folder / SETTINGS, (self.source.model / SETTINGS).read_bytes())
        return Made((file.name,), tuple(tensor_of(tensor) for tensor in export.plan(dtype, wider)), told)

    def _write(self, export: Export, kind: str, dtype: str, file: Path, wider: dict[str, str]) -> dict[str, Any]:
        """The file, with these tensors wider than the others; how it was rounded."""
        if not kind.endswith(gguf_writer.CALIBRATED):
            export.write(dtype, file, wider)
            return {"rounding": "none" if dtype == "F32" else "nearest"}
        from hermitcrab.compress.gguf_rounding import Calibrated

        packer = Calibrated(self.source, export)
        export.write(dtype, file, wider, packer)
        return packer.told()

    def _mixture(self, export: Export, kind: str, dtype: str, file: Path) -> tuple[dict[str, str], dict[str, Any]]:
        """Which tensors have to stay wider for the target, measured on the file with all of them narrow."""
        import torch

        from hermitcrab.compress.mixing import Mixture
        from hermitcrab.models import ggml
        from hermitcrab.models.formats import open_weights
        from hermitcrab.models.load import _gguf_tensors

        weights = open_weights(file)
        narrow = _gguf_tensors(weights, ggml.configuration(weights), torch.float32)
        return Mixture(self.source, kind, export.plan(dtype), export.names, narrow).fewest()

    def start(self, kind: str, folder: Path, made: Made) -> Start:
        from hermitcrab.tasks import Start

        names = [name for name in (made.files[0], SETTINGS) if (folder / name).exists()]
        described = describe_files(folder, names)
        base = {**self.source.base, "kind": "gguf", "name": made.files[0], "files": described}
        return Start(base, folder / made.files[0], None, self.source.start.fitted)

    @staticmethod
    def said(path: Path) -> dict[str, str | None]:
        found = gguf.read_file(path).metadata
        return {word: found.get(key) for word, key in WORDS.items()}

    @classmethod
    def pace(cls, start: Start) -> Callable[[], tuple[int, str]] | None:
        """In llama.cpp, which serves it, where that is here."""
        if not ggml_native.present():
            return None
        import xllamacpp as llama

        folder = tempfile.mkdtemp(prefix="crab-")
        params = llama.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(start.path), POSITIONS, 1
        params.hostnames = [f"{folder}/llama.sock"]  # a socket whose name is taken away at once: nobody can reach it
        params.fit_params = params.warmup = params.ui = False
        params.verbosity = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads()
        try:
            server = llama.Server(params)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

        def work() -> tuple[int, str]:
            heard: list[bytes] = []
            asked = {"prompt": PROMPT, "n_predict": PACE, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
            server.handle_completions(json.dumps(asked).encode(), heard.append)
            return int(json.loads(heard[-1])["usage"]["completion_tokens"]), "tokens"

        return work


PROMPT, PACE = (
    "The ferry leaves the harbor at six, and by seven",
    48,
)  # text given, tokens generated to see how fast a model is
POSITIONS = 256  # room for both


def metadata(about: dict[str, str]) -> dict[str, Any]:
    """License and base under GGUF's own keys, and the digests that the record goes by."""
    found: dict[str, Any] = {"general.type": "model", "general.name": about["name"]}
    if "base_name" in about:
        found["general.base_model.count"] = 1
    return found | {key: about[word] for word, key in WORDS.items() if word in about}


def tensor_of(planned: gguf_writer.Planned) -> Tensor:
    size = 1
    for dimension in planned.shape:
        size *= dimension
    return Tensor(planned.name, planned.dtype, planned.shape, 8 * planned.nbytes / size, planned.reason)
