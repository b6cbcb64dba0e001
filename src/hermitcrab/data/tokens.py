"""Texts into tokens: a tokenizer of one's own, learnt from training rows, and the token files of a whole table.

Notable:
- A fast encoder (fastokens) does the work and the reference (tokenizers) checks it: the first texts of every run and then one in
  256 are encoded by both. One id that differs, and the whole run is encoded by the reference, which is told.
- What looks like a special token in a text is text there: no row can end a document.
- Row groups are read one after another and written as they are encoded: memory is that of a batch, whatever the table's size.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.data.megatron import TokenWriter
from hermitcrab.data.tables import SPLITS
from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import progress, warn
from hermitcrab.store import write_atomic, write_json

if TYPE_CHECKING:
    import pyarrow as pa

    from hermitcrab.recipe.data import Tokens

END = "<|endoftext|>"  # of a tokenizer that is learnt here; its id is 0
BATCH = 8 << 20  # bytes of text that are encoded at once; a longer text is alone
ROWS = 1024  # of a batch that Parquet is read in
FIRST, EVERY = 32, 256  # texts that both encoders do: the first, then one of so many, drawn by row id
CHECKED = 1 << 14  # characters of a longer text that are compared


def tokenize(folder: Path, options: Tokens, base: tuple[Any, int, int | None] | None) -> dict[str, Any]:
    """The token files of every split of a prepared folder, below its `tokens/`, with the tokenizer and what each file holds.

    `base`: tokenizer, eos and bos of the base; None: one is learnt, from the training rows alone. Returns facts: who encoded, and
    what was compared with the reference.
    """
    learnt = base or (learn(folder / "train.parquet", options.vocab_size, options.sample), 0, None)
    tokenizer, eos, bos = learnt
    coders, told, facts = Coders(tokenizer), [], {}
    for name in SPLITS:
        began = time.process_time()
        done = coders.encode(folder / f"{name}.parquet", folder / "tokens" / name, eos, bos)
        told.append({"split": name, "documents": done.documents, "tokens": done.tokens, "bytes": done.text_bytes})
        facts[name] = {"encoder": done.encoder, "checked": done.checked, "differed": done.differed,
                       "cpu_seconds": time.process_time() - began}  # fmt: skip
        if done.differed is not None:
            warn(f"{name}: the fast encoder was not right ({done.differed}); all of it was encoded by {done.encoder}")
    write_atomic(folder / "tokens" / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    size = tokenizer.get_vocab_size()
    # What `AutoTokenizer.from_pretrained` needs, so that a model can be made on this folder.
    names = {"eos_token": tokenizer.id_to_token(eos)} | (
        {} if bos is None else {"bos_token": tokenizer.id_to_token(bos)}
    )
    write_json(folder / "tokens" / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    write_json(folder / "tokens" / "tokens.json", {"vocabulary": size, "eos": eos, "bos": bos, "splits": told})
    return facts


@dataclass(frozen=True)
class Encoded:
    """What came of a table: `encoder` wrote it; `checked` texts were encoded by both, `differed` is the first row that was not the same."""

    documents: int
    tokens: int
    text_bytes: int
    encoder: str
    checked: int
    differed: str | None = None


class _Differs(Exception):
    pass


def batches(path: Path, most: int = BATCH) -> Iterator[tuple[list[str], list[str]]]:
    """Row ids and texts of a table of format `text`, in its order, about `most` bytes at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=["row_id", "text"]):
            yield from _cut(batch, most)


def _cut(batch: pa.RecordBatch, most: int) -> Iterator[tuple[list[str], list[str]]]:
    import pyarrow.compute as pc

    end_N = np.cumsum(pc.binary_length(batch.column("text")).to_numpy(zero_copy_only=False).astype(np.int64))
    at = 0
    while at < len(end_N):
        before = end_N[at - 1] if at else 0
        last = max(at + 1, int(np.searchsorted(end_N, before + most, "right")))
        part = batch.slice(at, last - at)
        yield part.column("row_id").to_pylist(), part.column("text").to_pylist()
        at = last


def learn(path: Path, vocabulary: int, most: int) -> Any:
    """A byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2) learnt from the first `most` bytes of a table.

    The rows of a prepared table lie by their ids, which are digests: the first of them are a sample of all. Every byte has a token,
    so every text has ids. Returns a `tokenizers.Tokenizer`.

    Raises:
        HermitcrabError: the texts do not have that many pairs to merge.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    taken = 0

    def texts() -> Iterator[list[str]]:
        nonlocal taken
        with progress("learning a tokenizer from texts", unit="MB") as bar:
            for _, listed in batches(path):
                for text in listed:
                    size = len(text.encode())
                    if taken + size > most and taken:
                        return
                    taken += size
                    bar.add(size / 1e6)
                    yield [text]

    tokenizer.train_from_iterator(texts(), trainer)
    made = tokenizer.get_vocab_size()
    if made != vocabulary:
        raise HermitcrabError(
            f"data.tokens.vocab_size: {taken:,} bytes of training text give {made:,} tokens and no more. Received: {vocabulary:,}"
        )
    return tokenizer


class Reference:
    """The encoder that says what is right: the `tokenizers` library."""

    name = "tokenizers"

    def __init__(self, tokenizer: Any):
        self.tokenizer = _plain(tokenizer)

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        found = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        length_N = np.array([len(one) for one in found], np.int64)
        ids_T = np.fromiter((i for one in found for i in one.ids), np.uint32, int(length_N.sum()))
        return ids_T, length_N


class Fast:
    """fastokens, which reads the same tokenizer.json."""

    name = "fastokens"

    def __init__(self, tokenizer: Any):
        from fastokens import Tokenizer

        self.tokenizer = Tokenizer.from_json_str(_plain(tokenizer).to_str())

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets = self.tokenizer.encode_batch_flat(texts, add_special_tokens=False, split_special_tokens=True)
        return np.frombuffer(ids, "<u4"), np.diff(np.frombuffer(offsets, "<u8").astype(np.int64))


def _plain(tokenizer: Any) -> Any:
    """A copy that neither cuts nor pads, and reads a special token in a text as text."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy


def encode(path: Path, prefix: Path, tokenizer: Any, eos: int, bos: int | None = None, fast: bool = True) -> Encoded:
    """The token files `prefix.bin` and `.idx` of a table of format `text`; document i is row i of the table.

    Every document is `[bos,] its ids, eos`. The bytes depend on the table and the tokenizer alone, whichever encoder wrote them.
    """
    return Coders(tokenizer, fast).encode(path, prefix, eos, bos)


class Coders:
    """Both encoders of a tokenizer, made once: reading a vocabulary costs as much as encoding megabytes."""

    def __init__(self, tokenizer: Any, fast: bool = True):
        self.reference = Reference(tokenizer)
        self.refused: str | None = None
        self.fast: Fast | None = None
        if fast:
            try:
                self.fast = Fast(tokenizer)
            except ImportError:
                pass  # told: Encoded.encoder
            except ValueError as error:  # a tokenizer.json with parts that the fast encoder does not know
                self.refused = f"refused: {' '.join(str(error).split())[:200]}"

    def encode(self, path: Path, prefix: Path, eos: int, bos: int | None) -> Encoded:
        checked, differed = 0, self.refused
        if self.fast is not None:
            try:
                return _encode(path, prefix, self.fast, self.reference, eos, bos)
            except _Differs as error:
                checked, differed = error.args
        done = _encode(path, prefix, self.reference, None, eos, bos)
        return Encoded(done.documents, done.tokens, done.text_bytes, done.encoder, checked, differed)


def _encode(path: Path, prefix: Path, encoder: Any, reference: Any, eos: int, bos: int | None) -> Encoded:
    import pyarrow.parquet as pq

    vocabulary = (reference or encoder).tokenizer.get_vocab_size()
    vocabulary = max(vocabulary, eos + 1, 0 if bos is None else bos + 1)
    checked = text_bytes = seen = 0
    total = pq.read_metadata(path).num_rows
    with TokenWriter(prefix, vocabulary) as out, progress("tokens", total, "documents") as bar:
        for row_ids, texts in batches(path):
            ids_T, length_N = encoder(texts)
            if reference is not None:
                checked += _check(encoder, reference, row_ids, texts, ids_T, length_N, seen, checked)
            seen += len(texts)
            text_bytes += sum(len(text.encode()) for text in texts)
            out.write(*_ended(ids_T, length_N, eos, bos))
            bar.add(len(texts))
    return Encoded(out.documents, out.tokens, text_bytes, encoder.name, checked)


def _check(
    encoder: Any, reference: Any, row_ids: list[str], texts: list[str], ids_T: np.ndarray, length_N: np.ndarray,
    seen: int, before: int,
) -> int:  # fmt: skip
    """Compare a sample with the reference; how many texts. Longer texts are compared over their beginning, encoded by both."""
    start_N1 = np.concatenate([[0], np.cumsum(length_N)])
    count = 0
    for place, (row_id, text) in enumerate(zip(row_ids, texts, strict=True)):
        if seen + place >= FIRST and zlib.crc32(row_id.encode()) % EVERY:
            continue
        whole = len(text) <= CHECKED
        ours = ids_T[start_N1[place] : start_N1[place + 1]] if whole else encoder([text[:CHECKED]])[0]
        theirs = reference([text[:CHECKED]])[0]
        count += 1
        if not np.array_equal(ours, theirs):
            raise _Differs(before + count, row_id)
    return count


def _ended(ids_T: np.ndarray, length_N: np.ndarray, eos: int, bos: int | None) -> tuple[np.ndarray, np.ndarray]:
    """With `bos` before and `eos` behind every document."""
    lead = int(bos is not None)
    whole_N = length_N + 1 + lead
    end_N = np.cumsum(whole_N)
    whole_T = np.empty(int(whole_N.sum()), np.uint32)
    mine_T = np.ones(len(whole_T), bool)
    mine_T[end_N - 1] = False
    whole_T[end_N - 1] = eos
    if bos is not None:
        mine_T[end_N - whole_N] = False
        whole_T[end_N - whole_N] = bos
    whole_T[mine_T] = ids_T
    return whole_T, whole_N
