"""modelfile: a Modelfile for Ollama with a GGUF file of the package beside it.

The template is the one that the model was trained with, where Go can say it (`go_template`); else it is left out with the reason,
and Ollama looks for one of its own that is like the file's. Sampling is that of `evaluate`: none. Values are quoted as Ollama's
parser/parser.go reads them: to the end of the line, no escapes, characters that do not print dropped; so what cannot stand in
such a line is left out and said.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hermitcrab.deploy import Made
from hermitcrab.deploy.go_template import NoTemplate, derive, plain_go
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.lineage.card import plain
from hermitcrab.packaged import File, Packaged

if TYPE_CHECKING:
    from hermitcrab.deploy import Options
    from hermitcrab.models.tokenizer import TextTokenizer

NAME = "Modelfile"
MOST_POSITIONS = 8192  # of num_ctx: Ollama sets the memory of all of them aside


def make(package: Packaged, options: Options) -> Made:
    """Modelfile and the GGUF file.

    Raises:
        UsageError: the package has no GGUF file, or none of the type that is asked for.
    """
    from hermitcrab.models.formats import open_weights
    from hermitcrab.models.gguf_tokenizer import from_gguf

    kind, file, notes = _choose(package, options.type)
    weights = open_weights(package.path / file.path)
    target = f"model-{kind}.gguf"
    lines = [f"FROM ./{target}"]
    text = from_gguf(weights)
    template, stops, why = _template(package, text, weights.metadata.get("tokenizer.ggml.add_bos_token") is True)
    if why:
        lines.append(f"# TEMPLATE is left out: {plain(why, 400)}")
        notes.append(f"TEMPLATE is left out, so Ollama guesses one: {why}")
    else:
        lines.append(f'TEMPLATE """{template}"""')
    for stop in stops:
        if quotable(stop):
            lines.append(f'PARAMETER stop "{stop}"')
        else:
            notes.append(f"a Modelfile has no way to write the stop word {stop!r}")
    positions = weights.metadata.get(f"{weights.metadata.get('general.architecture')}.context_length")
    if type(positions) is int and positions > 0:
        lines.append(f"PARAMETER num_ctx {min(positions, MOST_POSITIONS)}")
        if positions > MOST_POSITIONS:
            notes.append(
                f"num_ctx is {MOST_POSITIONS:,} of the {positions:,} positions that the model has, to spare memory"
            )
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    license_id = package.record.get("license")
    if license_id and quotable(license_id):
        lines.append(f'LICENSE "{license_id}"')
    elif license_id:
        notes.append(f"a Modelfile has no way to write the license {plain(license_id, 80)!r}")
    notes.append(f"next: ollama create NAME -f {NAME}")
    return Made({NAME: ("\n".join(lines) + "\n").encode()}, copies={target: file}, notes=tuple(notes))


def quotable(text: str) -> bool:
    """Whether a value arrives as it is between two quotes on a line."""
    return bool(text) and '"' not in text and text.isprintable() and text == text.strip()


def _choose(package: Packaged, asked: str | None) -> tuple[str, File, list[str]]:
    """The type and the file: the one asked for, else the largest, which is nearest to what was measured."""
    found: dict[str, File] = {}
    for file in package.files:
        if file.path.endswith(".gguf"):
            named = re.search(r"(?:^|[-./])([A-Za-z0-9_]+)\.gguf$", file.path)
            kind = named[1] if named else "file"
            if kind in found:
                raise UsageError(
                    f"{package.path}: {found[kind].path} and {file.path} are both of type {kind}; leave one of them"
                )
            found[kind] = file
    if not found:
        raise UsageError(
            f"{package.path}: the package has no GGUF file, which Ollama needs; add `compress: {{gguf: [Q8_0]}}` and run again"
        )
    if asked is not None and asked not in found:
        raise UsageError(f"--type {asked}: the package has GGUF files of the types {', '.join(sorted(found))}")
    kind = asked or max(found, key=lambda name: (found[name].size, name))
    others = sorted(found.keys() - {kind})
    note = [f"of {kind} (also here: {', '.join(others)}; --type chooses)"] if others and asked is None else []
    return kind, found[kind], note


def _template(package: Packaged, text: TextTokenizer, adds_bos: bool) -> tuple[str, list[str], str | None]:
    """The template in Go, the words that end an answer, and the reason where there is no template."""
    eos, bos = text.special.get("eos_token"), text.special.get("bos_token")
    ends = [eos] if eos else []
    if not _chats(package.record, text):
        return plain_go(), ends, None
    try:
        found = derive(text.render)
    except NoTemplate as error:
        return "", ends, str(error)
    special = {token.content for token in text.backend.get_added_tokens_decoder().values() if token.special}
    ends += sorted(word for word in special if word in found.behind["assistant"] and word not in ends)
    if adds_bos and bos:
        heads = [head + found.before[role] for role, head in found.head.items()]
        if not all(head.startswith(bos) for head in heads):
            return (
                "",
                ends,
                f"the file has Ollama put {bos} before every text, and the chat template does not begin with it",
            )
        if not all(head.startswith(bos) for head in found.head.values()):
            return (
                "",
                ends,
                f"the file has Ollama put {bos} before every text, and the chat template puts it elsewhere too",
            )
        found = type(found)({role: head.removeprefix(bos) for role, head in found.head.items()}, found.before, found.behind,
                            found.prompt)  # fmt: skip
    return found.as_go(), ends, None


def _chats(record: dict[str, Any], text: TextTokenizer) -> bool:
    """Whether the chat template was used in training: as the record says, else where there is one.

    Raises:
        HermitcrabError: the file has another chat template than the one of the record.
    """
    from hermitcrab.digest import digest_json

    recorded = record.get("template_digest")
    if recorded is None or recorded == text.template_digest:
        return text.chat_template is not None
    if recorded == digest_json({"template": "none", "eos": text.id("eos_token")}):
        return False
    raise HermitcrabError(
        f"the chat template of the GGUF file is not the one that the model was trained with. Expected: {plain(recorded, 80)}"
    )
