"""GGUF: one file that llama.cpp serves, with tokenizer, chat template and settings in its metadata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.compress import Made, Source, Tensor
from hermitcrab.digest import describe_files
from hermitcrab.models.formats import gguf, gguf_writer
from hermitcrab.store import write_atomic

if TYPE_CHECKING:
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

    @classmethod
    def check(cls, part: Compress, base: dict[str, Any], path: Path) -> None:
        """An architecture or a tokenizer that GGUF has no words for."""
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
        file = folder / f"{self.source.name}-{kind}.gguf"
        export.write(kind, file)
        if (self.source.model / SETTINGS).exists():
            write_atomic(folder / SETTINGS, (self.source.model / SETTINGS).read_bytes())
        planned = export.plan(kind)
        return Made((file.name,), tuple(tensor_of(tensor) for tensor in planned), {"rounding": "nearest"})

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
        return None


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
