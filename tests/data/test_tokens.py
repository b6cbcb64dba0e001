from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermitcrab.data import tokens
from hermitcrab.data.megatron import TokenFile, TokenWriter, kind_for
from hermitcrab.data.tables import row_id, schema, write_rows
from hermitcrab.data.tokens import END, encode, learn
from hermitcrab.errors import HermitcrabError

ENGLISH = "The ferry leaves the harbor at six, and by seven the mountains are out of sight. Don't wait for 12 others!"
CHINESE = "寄居蟹住在别的动物留下的壳里，没有谁会因此责怪它。"


def write(path: Path, texts: list[str]) -> Path:
    rows = [{"row_id": row_id("sha256:0", i), "source": "s", "text": text} for i, text in enumerate(texts)]
    write_rows(path, rows, schema("text"))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("learn") / "train.parquet", [ENGLISH, CHINESE] * 20)
    return learn(path, 300, 1 << 20)


def expected(tokenizer, text: str) -> list[int]:
    plain = tokens._plain(tokenizer)
    return [*plain.encode(text, add_special_tokens=False).ids, 0]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.one_of(st.text(max_size=60), st.sampled_from(["", ENGLISH, CHINESE, f"a{END}b", "\n\n"])), max_size=12)
)
def test_every_token_of_every_document_is_in_the_file_once(tmp_path_factory, tokenizer, texts):
    folder = tmp_path_factory.mktemp("rows")
    done = encode(write(folder / "train.parquet", texts), folder / "train", tokenizer, eos=0)
    file = TokenFile(folder / "train")
    assert [file.document(i).tolist() for i in range(len(file))] == [expected(tokenizer, text) for text in texts]
    assert done.documents == len(texts)
    assert done.tokens == len(file.ids_T) == sum(len(expected(tokenizer, text)) for text in texts)
    assert done.text_bytes == sum(len(text.encode()) for text in texts)


def test_both_encoders_write_the_same_bytes(tmp_path, tokenizer):
    pytest.importorskip("fastokens")
    path = write(tmp_path / "train.parquet", [ENGLISH, "", CHINESE, ENGLISH * 300, f"{END} e\u0301 \u00a0 Ⅷ 🦀"] * 30)
    fast = encode(path, tmp_path / "fast", tokenizer, eos=0)
    slow = encode(path, tmp_path / "slow", tokenizer, eos=0, fast=False)
    assert (fast.encoder, slow.encoder) == ("fastokens", "tokenizers")
    assert fast.checked >= tokens.FIRST
    assert fast.differed is None
    for ending in ("bin", "idx"):
        assert (tmp_path / f"fast.{ending}").read_bytes() == (tmp_path / f"slow.{ending}").read_bytes()


def test_one_id_that_differs_and_the_reference_encodes_the_whole_run(tmp_path, tokenizer, monkeypatch):
    pytest.importorskip("fastokens")

    class Broken(tokens.Fast):
        def __call__(self, texts):
            ids_T, length_N = super().__call__(texts)
            return np.concatenate([ids_T[:1] ^ 1, ids_T[1:]]), length_N

    path = write(tmp_path / "train.parquet", [ENGLISH, CHINESE])
    encode(path, tmp_path / "right", tokenizer, eos=0, fast=False)
    monkeypatch.setattr(tokens, "Fast", Broken)
    done = encode(path, tmp_path / "train", tokenizer, eos=0)
    assert done.encoder == "tokenizers"
    assert done.differed == row_id("sha256:0", 0)
    assert (tmp_path / "train.bin").read_bytes() == (tmp_path / "right.bin").read_bytes()
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(".")} == set()


def test_a_giant_document_and_small_batches_give_the_bytes_of_one_batch(tmp_path, tokenizer, monkeypatch):
    path = write(tmp_path / "train.parquet", [ENGLISH, (ENGLISH + CHINESE) * 4000, "", CHINESE])
    encode(path, tmp_path / "one", tokenizer, eos=0)
    monkeypatch.setattr(tokens, "BATCH", 64)
    assert len(list(tokens.batches(path, 64))) >= 3
    monkeypatch.setattr(tokens.batches, "__defaults__", (64,))
    encode(path, tmp_path / "many", tokenizer, eos=0)
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "many.bin").read_bytes()
    assert (tmp_path / "one.idx").read_bytes() == (tmp_path / "many.idx").read_bytes()


def test_a_begin_token_stands_before_every_document(tmp_path, tokenizer):
    encode(write(tmp_path / "train.parquet", [ENGLISH, ""]), tmp_path / "train", tokenizer, eos=0, bos=1)
    file = TokenFile(tmp_path / "train")
    assert file.document(0).tolist() == [1, *expected(tokenizer, ENGLISH)]
    assert file.document(1).tolist() == [1, 0]


def test_learning_is_repeatable_and_sees_no_more_than_it_may(tmp_path):
    path = write(tmp_path / "train.parquet", [ENGLISH] * 8 + [CHINESE] * 8)
    assert learn(path, 280, 1 << 20).to_str() == learn(path, 280, 1 << 20).to_str()
    first = write(tmp_path / "first.parquet", [ENGLISH] * 8)
    assert learn(path, 280, len(ENGLISH) * 8).to_str() == learn(first, 280, 1 << 20).to_str()


def test_a_vocabulary_that_the_texts_do_not_give_is_refused(tmp_path):
    with pytest.raises(HermitcrabError, match=r"vocab_size.*Received: 9,000"):
        learn(write(tmp_path / "train.parquet", [ENGLISH]), 9000, 1 << 20)


@pytest.mark.parametrize(
    ("vocabulary", "kind", "code"), [(65_536, np.uint16, 8), (65_537, np.int32, 4), (200_000, np.int32, 4)]
)
def test_the_layout_is_megatrons(tmp_path, vocabulary, kind, code):
    assert kind_for(vocabulary) is kind
    documents = [[1, 2, vocabulary - 1], [], [7]]
    with TokenWriter(tmp_path / "t", vocabulary) as out:
        out.write(np.array([1, 2, vocabulary - 1], np.uint32), np.array([3]))
        out.write(np.array([7], np.uint32), np.array([0, 1]))
    size = np.dtype(kind).itemsize
    index = (tmp_path / "t.idx").read_bytes()
    assert index == b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, 3, 4) + struct.pack("<3i", 3, 0, 1) + struct.pack(
        "<3q", 0, 3 * size, 3 * size
    ) + struct.pack("<4q", 0, 1, 2, 3)
    assert (tmp_path / "t.bin").read_bytes() == np.array([1, 2, vocabulary - 1, 7], kind).tobytes()
    file = TokenFile(tmp_path / "t")
    assert [file.document(i).tolist() for i in range(3)] == documents


def test_an_id_outside_the_vocabulary_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(HermitcrabError, match="outside the vocabulary"), TokenWriter(tmp_path / "t", 10) as out:
        out.write(np.array([10], np.uint32), np.array([1]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", ["header", "cut", "bin", "pointer", "documents"])
def test_a_damaged_file_is_one_clear_error(tmp_path, harm):
    with TokenWriter(tmp_path / "t", 10) as out:
        out.write(np.array([1, 2, 3], np.uint32), np.array([2, 1]))
    index, data = tmp_path / "t.idx", bytearray((tmp_path / "t.idx").read_bytes())
    if harm == "header":
        data[0] = 0
    elif harm == "cut":
        data = data[:-1]
    elif harm == "bin":
        (tmp_path / "t.bin").write_bytes(b"\1\0")
    elif harm == "pointer":
        struct.pack_into("<q", data, 34 + 8, 1 << 40)
    else:
        struct.pack_into("<q", data, 34 + 8 + 16 + 8, 9)
    index.write_bytes(data)
    with pytest.raises(HermitcrabError):
        TokenFile(tmp_path / "t")


def test_no_document_at_all(tmp_path, tokenizer):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"row_id": pa.array([], pa.string()), "text": pa.array([], pa.string())}), path)
    assert encode(path, tmp_path / "train", tokenizer, eos=0).documents == 0
    assert len(TokenFile(tmp_path / "train")) == 0
