"""The kernel against the same in plain Python."""

import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab.data import kernel

HAN = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
SPACE = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
WORD = re.compile(f"[{HAN}]|[^{HAN}{SPACE}]+")
letters = st.sampled_from("ab c\n\t \u3000é中文，。😀\uf900\U00020000")
texts = st.lists(st.text(letters | st.characters(codec="utf-8"), max_size=60), max_size=6)
few = st.lists(st.lists(st.sampled_from(["a", "bb", "中", "dd"]), max_size=80).map(" ".join), min_size=1, max_size=4)


def array(found):
    return pa.array(found, pa.large_string())


def words_of(found, i):
    return slice(found.start_N1[i], found.start_N1[i + 1])


@settings(deadline=None)
@given(texts)
def test_words_are_han_characters_and_runs_of_the_rest(found):
    words = kernel.split(array(found))
    data = "".join(found).encode()
    same: dict[str, int] = {}
    for i, text in enumerate(found):
        at = words_of(words, i)
        places = zip(words.begin_T[at].tolist(), words.length_T[at].tolist(), strict=True)
        wanted = WORD.findall(text)
        assert [data[begin : begin + length].decode() for begin, length in places] == wanted
        assert words.letters_T[at].tolist() == [len(word) for word in wanted]
        for word, hashed in zip(wanted, words.hash_T[at].tolist(), strict=True):
            assert same.setdefault(word, hashed) == hashed
    assert len(set(same.values())) == len(same)


def test_whitespace_is_what_python_takes_for_it():
    space = re.compile(f"[{SPACE}]")
    assert all(bool(space.match(chr(code))) == chr(code).isspace() for code in range(0x110000))


@settings(deadline=None)
@given(texts)
def test_a_slice_of_a_batch_is_split_like_the_texts_in_it(found):
    whole, part = array(["x y", *found, "z"]), array(found)
    assert kernel.split(whole.slice(1, len(found))).hash_T.tolist() == kernel.split(part).hash_T.tolist()


def test_folded_words_are_blind_to_retyping():
    one = kernel.split(array(["“GREAT”  film—really! ＡＢ", "Great film: REALLY ab"]), folded=True)
    other = kernel.split(array(["great", "2*3", "2/3"]), folded=True)
    assert one.hash_T[words_of(one, 0)].tolist() == one.hash_T[words_of(one, 1)].tolist()
    assert len(set(other.hash_T.tolist())) == 3


def test_broken_bytes_are_words_and_no_crash():
    offsets = pa.array([0, 5], pa.int64()).buffers()[1]
    broken = pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(b"\xff\xf8\xbf\xbf\xe4")])
    assert len(kernel.split(broken).hash_T) >= 1


def top(words, n):
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    most = max(grams.values(), default=1)
    if most < 2:
        return 0
    return most * max(sum(map(len, gram)) for gram, count in grams.items() if count == most)


def again(words, n):
    """As datatrove counts it: a repeat is skipped as a whole, so no character counts twice."""
    seen, count, i = set(), 0, 0
    while i < len(words) - n + 1:
        gram = tuple(words[i : i + n])
        if gram in seen:
            count, i = count + sum(map(len, gram)), i + n
        else:
            seen.add(gram)
            i += 1
    return count


@settings(deadline=None)
@given(few)
def test_repetition_is_as_in_plain_python(found):
    top_N3, again_N6 = kernel.repetition(kernel.split(array(found)))
    for i, text in enumerate(found):
        words = WORD.findall(text)
        total = max(sum(map(len, words)), 1)
        assert top_N3[i].tolist() == pytest.approx([top(words, n) / total for n in (2, 3, 4)])
        assert again_N6[i].tolist() == pytest.approx([again(words, n) / total for n in range(5, 11)])


@settings(deadline=None)
@given(few, st.integers(1, 6))
def test_shingles_are_the_different_ngrams(found, n):
    start, hashed = kernel.shingles(kernel.split(array(found)), n)
    named: dict[int, tuple[str, ...]] = {}
    for i, text in enumerate(found):
        words = WORD.findall(text)
        width = min(n, len(words))
        grams = {tuple(words[k : k + width]) for k in range(len(words) - width + 1)} if words else set()
        mine = hashed[start[i] : start[i + 1]].tolist()
        assert len(mine) == len(set(mine)) == len(grams)
        ordered = dict.fromkeys(tuple(words[k : k + width]) for k in range(len(words) - width + 1) if words)
        for gram, value in zip(ordered, mine, strict=True):
            assert named.setdefault(value, gram) == gram


@settings(deadline=None)
@given(few, st.integers(1, 5))
def test_ngrams_are_equal_where_the_words_are(found, n):
    words = kernel.split(array(found))
    hashed, named = kernel.ngrams(words, n), dict[tuple, int]()
    for i, text in enumerate(found):
        split = WORD.findall(text)
        for k in range(len(split) - n + 1):
            value = int(hashed[words.start_N1[i] + k])
            assert named.setdefault(tuple(split[k : k + n]), value) == value
    assert len(set(named.values())) == len(named)


def test_signatures_estimate_the_similarity():
    rng = np.random.default_rng(0)
    same = rng.integers(0, 2**64, 3000, np.uint64)
    for shared in (300, 1500, 2700):
        other = np.concatenate([same[:shared], rng.integers(0, 2**64, 3000 - shared, np.uint64)])
        least = kernel.minhash(np.array([0, 3000, 6000]), np.concatenate([same, other]), 512)
        jaccard = shared / (6000 - shared)
        assert abs((least[0] == least[1]).mean() - jaccard) < 4 * (jaccard * (1 - jaccard) / 512) ** 0.5


def test_order_and_repeats_do_not_change_a_signature():
    found = np.arange(1, 500, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    start = np.array([0, len(found), 2 * len(found)])
    least = kernel.minhash(start, np.concatenate([found, found[::-1]]))
    assert (least[0] == least[1]).all()
    assert (kernel.bands(least, 6)[0] == kernel.bands(least, 6)[1]).all()


def test_signatures_are_what_they_were():
    """Survivors of a near-duplicate search hang on them, so they must not change from one version to the next."""
    least = kernel.minhash(*kernel.shingles(kernel.split(array(["the quick brown fox jumps over 中文 the lazy dog"]))))
    assert least[0, :3].tolist() == [385725157, 1308074221, 119165217]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_a_pair_at_the_threshold_is_nearly_always_a_candidate(threshold):
    count, rows = kernel.banding(threshold)
    assert count * rows <= 128
    assert 1 - (1 - threshold**rows) ** count >= 0.995
