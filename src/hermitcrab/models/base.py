"""What a model starts from, as the record tells it: `base.json`. Torch-free.

The digest covers every file that the loader reads, and the loader checks each against it, so what is recorded is what
was trained. Documents beside the weights (README, LICENSE) are read for the license alone and are not in the digest.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from hermitcrab.digest import describe_files, digest_json
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.models import architectures, ggml
from hermitcrab.models.formats import PICKLES, Weights, open_weights
from hermitcrab.models.tokenizer import FILES as TOKENIZER_FILES
from hermitcrab.models.tokenizer import TextTokenizer, read_json_file, read_tokenizer
from hermitcrab.progress import progress
from hermitcrab.recipe import Base
from hermitcrab.references import Resolved

CONFIG_FILES = ("config.json", "generation_config.json")
LONGEST_README = 1 << 20
NO_LICENSE = ("", "other", "unknown", "none", "unlicensed", "noassertion")
REFUSED_CONFIG = {"quantization_config": "is quantized in a way that cannot be trained"}


def describe(path: Path, resolved: Resolved, part: Base, reads_text: bool = True) -> dict[str, Any]:
    """`base.json`: files with digests, license, architecture, sizes.

    For `scratch`, `path` is where the tokenizer's reference was found. `reads_text`: the model needs a tokenizer.

    Raises:
        HermitcrabError: a damaged or unsupported base, or a license that is neither found nor declared.
    """
    if resolved.kind == "scratch":
        return _describe_scratch(path, resolved, part, reads_text)
    return _describe_model(path, resolved, part, reads_text)


def _describe_model(path: Path, resolved: Resolved, part: Base, reads_text: bool) -> dict[str, Any]:
    with progress("reading headers", unit="files"):
        weights = open_weights(path)
    root = path if path.is_dir() else path.parent
    notes: list[str] = []
    if weights.format == "gguf":
        if not reads_text:
            raise HermitcrabError(f"{path}: a GGUF file holds a language model; expected a folder with safetensors")
        config, kind = ggml.configuration(weights), "gguf"
        ggml.tensor_names(weights)
        names = [file.relative_to(root).as_posix() for file in weights.files]
    else:
        if not path.is_dir():
            raise HermitcrabError(f"{path}: weights alone are no model; give the folder with config.json and tokenizer")
        config, kind = read_config(path), "safetensors"
        beside = (*CONFIG_FILES, *(TOKENIZER_FILES if reads_text else ("preprocessor_config.json",)))
        names = _weight_names(path, weights, notes) + _present(path, beside)
    tokenizer = read_tokenizer(path) if reads_text else None
    if tokenizer:
        _check_ids(path, tokenizer, config)
    files = _digests(root, names)
    return {
        "uri": resolved.uri,
        "revision": resolved.revision,
        "kind": kind,
        "name": _name(resolved, path),
        "files": files,
        "digest": digest_json(files),
        "license": _license(path, resolved, part, *_found_license(path, weights, notes), notes),
        "model_type": config["model_type"],
        "architecture": _architecture(config),
        "parameters": weights.parameters,
        "tensors": len(weights.tensors),
        "dtypes": weights.dtypes,
        "shape": shape(config),
        "chat_template_digest": tokenizer.template_digest if tokenizer else None,
        "notes": notes,
    }


def _describe_scratch(path: Path, resolved: Resolved, part: Base, reads_text: bool) -> dict[str, Any]:
    if not part.architecture or not isinstance(part.architecture.get("model_type"), str):
        raise UsageError("base.path `scratch` needs base.architecture with its model_type")
    config = checked_config(part.architecture, "base.architecture")
    files: list[dict[str, Any]] = []
    notes: list[str] = []
    template_digest = None
    if reads_text:
        tokenizer = read_tokenizer(path)
        root = path if path.is_dir() else path.parent
        config = {"vocab_size": tokenizer.backend.get_vocab_size(), **config}
        for name in ("bos_token", "eos_token", "pad_token"):
            config.setdefault(f"{name}_id", tokenizer.id(name))
        _check_ids(path, tokenizer, config)
        files = _digests(root, _present(path, TOKENIZER_FILES) if (path / "tokenizer.json").exists() else [path.name])
        notes, template_digest = [f"tokenizer of {path.name}"], tokenizer.template_digest
    if not part.license:
        raise HermitcrabError("base.path `scratch`: nothing declares a license for the new weights; set base.license")
    return {
        "uri": "scratch",
        "revision": None,
        "kind": "scratch",
        "name": f"scratch {config['model_type']}",
        "files": files,
        "digest": digest_json({"configuration": config, "files": files}),
        "configuration": config,
        "license": {"found": None, "declared": spdx(part.license), "used": spdx(part.license)},
        "model_type": config["model_type"],
        "architecture": _architecture(config),
        "parameters": None,
        "tensors": None,
        "dtypes": {},
        "shape": shape(config),
        "chat_template_digest": template_digest,
        "notes": notes,
    }


# Configuration

SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


def shape(config: dict[str, Any]) -> dict[str, int]:
    """The widths that decide how much work a model is, as far as its configuration names them so."""
    return {name: config[name] for name in SHAPE if isinstance(config.get(name), int)}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json without what a stranger's file must not decide; HermitcrabError where it is unfit."""
    if not (folder / "config.json").exists():
        raise HermitcrabError(f"{folder}: has no config.json, so its architecture is not known")
    return checked_config(read_json_file(folder / "config.json"), str(folder / "config.json"))


def checked_config(config: Any, where: str) -> dict[str, Any]:
    """A configuration with keys dropped that load code, choose kernels or carry paths; quantized ones refused."""
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise HermitcrabError(f"{where}: names no model_type")
    for key, why in REFUSED_CONFIG.items():
        if config.get(key):
            raise HermitcrabError(f"{where}: the model {why} ({key}); use its release in BF16, F16 or F32")
    dropped = ("auto_map", "attn_implementation", "experts_implementation", "transformers_weights", "fusion_config",
               "distributed_config", "torch_dtype", "dtype", "transformers_version")  # fmt: skip
    checked = {}
    for key, value in config.items():
        if key.startswith("_") or key in dropped:
            continue
        parts = key.endswith("_config") and isinstance(value, dict)
        checked[key] = checked_config({"model_type": "", **value}, f"{where}: {key}") if parts else value
    return architectures.complete(checked, where)


def _architecture(config: dict[str, Any]) -> str | None:
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None


def _check_ids(path: Path, tokenizer: TextTokenizer, config: dict[str, Any]) -> None:
    """Every id of the tokenizer has a row in the embedding."""
    size = config.get("vocab_size")
    if type(size) is int and tokenizer.backend.get_vocab_size() > size:
        raise HermitcrabError(
            f"{path}: its tokenizer has {tokenizer.backend.get_vocab_size():,} tokens, but the model embeds {size:,}"
        )


# Files


def _present(folder: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if (folder / name).exists()]


def _weight_names(folder: Path, weights: Weights, notes: list[str]) -> list[str]:
    inside = [file.name for file in weights.files if file.parent == folder]
    if inside:
        if any(name.endswith(PICKLES) for name in inside):
            notes.append(
                "the weights came as a pickle, which was read as data: tensors only, and nothing in it was run"
            )
        return inside
    from hermitcrab.models.formats import weight_file

    notes.append("the weights came as a pickle, read in a process of its own that takes tensors only")
    return [weight_file(folder).name]


def _digests(root: Path, names: list[str]) -> list[dict[str, Any]]:
    with progress("digests of the base", len(names), "files") as bar:
        files = []
        for name in sorted(names):
            files += describe_files(root, [name])
            bar.add()
    return files


def _name(resolved: Resolved, path: Path) -> str:
    if resolved.kind in ("hf", "ms", "run"):
        return resolved.uri.partition(":")[2].partition("@")[0]
    return path.stem if path.is_file() else path.name


# License


def spdx(license_id: str) -> str:
    """The license in SPDX spelling where it is an SPDX expression; as it stands elsewhere (`llama3.2`)."""
    from license_expression import get_spdx_licensing

    try:
        return get_spdx_licensing().parse(license_id.strip(), validate=True).render()
    except Exception:  # noqa: BLE001 - the parser raises IndexError and others on odd input
        return license_id.strip()


def license_in(path: Path) -> str | None:
    """The license that a base's own files name, from headers alone."""
    return _found_license(path, open_weights(path), [])[0]


def _found_license(path: Path, weights: Weights, notes: list[str]) -> tuple[str | None, str]:
    """What the files say of their license, and where they say it."""
    places: list[tuple[str, Any]] = [("the GGUF key general.license", weights.metadata.get("general.license"))]
    if path.is_dir():
        if (path / "hermitcrab.json").is_file():
            package = read_json_file(path / "hermitcrab.json")
            places.append(("hermitcrab.json", package.get("license") if isinstance(package, dict) else None))
        places.append(("README.md", _front_matter(path / "README.md").get("license")))
    for place, value in places:
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(value, str) and value.strip().lower() not in NO_LICENSE and len(value) < 200:
            return spdx(value), place
        if value:
            notes.append(f"{place} says the license is {str(value)[:60]!r}, which names none")
    if path.is_dir() and (texts := sorted(p.name for p in path.glob("LICENSE*"))):
        notes.append(f"a license text lies beside the weights ({', '.join(texts[:3])}); it was not interpreted")
    return None, ""


def _front_matter(file: Path) -> dict[str, Any]:
    """The YAML block that a model card begins with."""
    if not file.is_file() or file.is_symlink():
        return {}
    with open(file, "rb") as opened:
        text = opened.read(LONGEST_README).decode("utf-8", "replace")
    match = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        found = yaml.safe_load(match[1]) if match else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _license(
    path: Path, resolved: Resolved, part: Base, found: str | None, place: str, notes: list[str]
) -> dict[str, str | None]:
    declared = spdx(part.license) if part.license else None
    if found is None and declared is None:
        raise HermitcrabError(
            f"{resolved.reference}: its files name no license{_texts(path)}; find it out and declare it as base.license"
        )
    if found is not None and declared is not None and found != declared:
        notes.append(f"{place} says {found}, the recipe declares {declared}; the recipe's is used")
    return {"found": found, "declared": declared, "used": declared or found}


def _texts(path: Path) -> str:
    texts = sorted(p.name for p in path.glob("LICENSE*")) if path.is_dir() else []
    return f" (read {texts[0]})" if texts else ""
