"""The tokenizer of a base, torch-free: from a folder's `tokenizer.json` or from the metadata of a GGUF file.

Whatever it came from, it is used as it stands and saved as it stands: the same text gives the same ids in training, in
evaluation, in serving, and with transformers' `AutoTokenizer`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermitcrab.digest import digest_bytes
from hermitcrab.errors import HermitcrabError
from hermitcrab.models.chat import render_chat
from hermitcrab.models.formats import open_weights
from hermitcrab.store import write_atomic, write_json

__all__ = ["FILES", "TextTokenizer", "read_tokenizer", "render_chat"]

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
LARGEST_FILE = 1 << 28


def _byte_characters() -> dict[str, int]:
    """How byte-level BPE writes bytes as characters: printable ones as themselves, the others from U+0100 on (GPT-2)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


BYTE_OF = _byte_characters()


@dataclass(frozen=True)
class TextTokenizer:
    """Text to ids and back.

    Attributes:
        backend: a `tokenizers.Tokenizer`.
        special: `bos_token`, `eos_token`, `pad_token`, `unk_token` → its text, as far as the base has it.
        chat_template: Jinja source.
        settings: what else of tokenizer_config.json is kept.
    """

    backend: Any
    special: dict[str, str]
    chat_template: str | None
    settings: dict[str, Any] = field(default_factory=dict)

    def id(self, name: str) -> int | None:
        """The id of `bos_token`, `eos_token`, …"""
        return self.backend.token_to_id(self.special[name]) if name in self.special else None

    @property
    def adds_bos(self) -> bool:
        """Whether the base was taught on texts that begin with the bos token."""
        bos = self.id("bos_token")
        return bos is not None and self.backend.encode("a", add_special_tokens=True).ids[:1] == [bos]

    @property
    def template_digest(self) -> str | None:
        return digest_bytes(self.chat_template.encode()) if self.chat_template else None

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text; `special`: with the tokens that the base puts around every text."""
        return self.backend.encode(text, add_special_tokens=special).ids

    def decode(self, ids: list[int], special: bool = False) -> str:
        return self.backend.decode(ids, skip_special_tokens=not special)

    def render(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool, tools: list[dict[str, Any]] | None = None
    ) -> str:
        if self.chat_template is None:
            raise HermitcrabError("this base has no chat template")
        bos, eos = self.special.get("bos_token"), self.special.get("eos_token")
        return render_chat(
            self.chat_template, messages, bos=bos, eos=eos, add_generation_prompt=add_generation_prompt, tools=tools
        )

    def bytes_of(self, id: int) -> bytes:
        """The bytes that a token stands for, which may be no whole character; of a special token, its name."""
        token = self.backend.id_to_token(id)
        if token is None:
            return b""
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token):  # a byte of SentencePiece
            return bytes([int(token[3:5], 16)])
        if "\u2581" in token:  # SentencePiece's space, which decoding takes off the beginning of a text
            return token.replace("\u2581", " ").encode()
        whole = self.backend.decode([id], skip_special_tokens=False)
        if "\ufffd" in whole and all(character in BYTE_OF for character in token):
            return bytes(BYTE_OF[character] for character in token)
        return whole.encode()

    def save(self, folder: Path) -> None:
        """tokenizer.json, tokenizer_config.json, chat_template.jinja: what `AutoTokenizer.from_pretrained` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "tokenizer.json", self.backend.to_str(pretty=True).encode())
        # The class that takes tokenizer.json as it stands; those named after a model rebuild parts of it.
        settings = {**self.settings, **self.special, "tokenizer_class": "PreTrainedTokenizerFast"}
        write_json(folder / "tokenizer_config.json", settings)
        if self.chat_template is not None:
            write_atomic(folder / "chat_template.jinja", self.chat_template.encode())


def read_tokenizer(path: Path) -> TextTokenizer:
    """The tokenizer in a folder or in a GGUF file.

    Raises:
        HermitcrabError: there is none, it is damaged, or its pre-tokenizer is not known.
    """
    if path.is_dir() and (path / "tokenizer.json").exists():
        return _from_folder(path)
    if path.is_dir() and not list(path.glob("*.gguf")):
        raise HermitcrabError(f"{path}: has no tokenizer.json; save the tokenizer in that form beside the model")
    from hermitcrab.models.gguf_tokenizer import from_gguf

    weights = open_weights(path)
    if weights.format != "gguf":
        raise HermitcrabError(f"{path}: holds no tokenizer; give the folder with its tokenizer.json")
    return from_gguf(weights)


@contextmanager
def library_errors(where: Path, what: str) -> Iterator[None]:
    """Failures of the tokenizers library, panics too (which are no `Exception`), in one sentence."""
    try:
        yield
    except HermitcrabError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise HermitcrabError(f"{where}: {what} cannot be used: {' '.join(str(error).split())[:200]}") from error


# From a folder


def read_json_file(path: Path) -> Any:
    """A JSON file of a stranger; HermitcrabError where it is none."""
    if path.is_symlink():
        raise HermitcrabError(f"{path}: is a symbolic link; refused")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise HermitcrabError(f"{path}: is too large")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HermitcrabError(f"{path}: is no readable JSON: {' '.join(str(error).split())[:120]}") from error


def _from_folder(folder: Path) -> TextTokenizer:
    from tokenizers import Tokenizer

    content = read_json_file(folder / "tokenizer.json")
    with library_errors(folder / "tokenizer.json", "this tokenizer"):
        backend = Tokenizer.from_str(json.dumps(content))
        backend.no_padding()
        backend.no_truncation()
    config = _optional(folder / "tokenizer_config.json")
    named = {**_optional(folder / "special_tokens_map.json"), **config}
    special = {}
    for name in SPECIAL:
        token = named.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text:
            if backend.token_to_id(text) is None:
                raise HermitcrabError(f"{folder}: {name} is {text[:40]!r}, which is not in the vocabulary")
            special[name] = text
    kept = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces")
    settings = {name: config[name] for name in kept if type(config.get(name)) in (int, str, bool)}
    return TextTokenizer(backend, special, _template(folder, config), settings)


def _optional(path: Path) -> dict[str, Any]:
    content = read_json_file(path) if path.exists() or path.is_symlink() else {}
    if not isinstance(content, dict):
        raise HermitcrabError(f"{path}: is no JSON object")
    return content


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_symlink():
        raise HermitcrabError(f"{file}: is a symbolic link; refused")
    if file.is_file():
        try:
            return file.read_bytes().decode("utf-8")  # line ends as they are: the record has the digest of these bytes
        except (OSError, UnicodeDecodeError) as error:
            raise HermitcrabError(f"{file}: cannot be read: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        found = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = found.get("default")
    return template if isinstance(template, str) else None
