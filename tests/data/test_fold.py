import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab.data.filters import Texts, make_filter
from hermitcrab.data.fold import fold, fold_texts, keys, normalize_text, normalize_texts
from hermitcrab.recipe.clean import Normalize

letters = st.sampled_from("aA ßé\u0301\u1100\u1161\u11a8ﬁ２½\u3000\u00a0,。!?ıİ中\U0002f800\ud7a3\uff9e\x07\r\n\t\x1c")
texts = st.lists(st.text(letters | st.characters(codec="utf-8"), max_size=20), max_size=8)


def array(found):
    return pa.array(found, pa.large_string())


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
@given(text=st.text())
def test_normalization_is_idempotent_and_leaves_no_control_character(form, text):
    once = normalize_text(text, form)
    assert normalize_text(once, form) == once
    assert unicodedata.is_normalized(form, once)
    assert not {c for c in once if unicodedata.category(c) == "Cc"} - {"\n", "\t"}


def test_normalization_of_each_kind():
    assert normalize_text("  cafe\u0301\x07\r\nline\rend\t\u00a0", "NFC") == "café\nline\nend"
    assert normalize_text("ﬁne ２", "NFC") == "ﬁne ２"
    assert normalize_text("ﬁne ２", "NFKC") == "fine 2"


def test_formulas_and_lone_punctuation_stay_apart():
    assert len({fold(text) for text in ("2*3", "2/3", "2+3", "23", "?", "!")}) == 6
    assert fold("Straße, 1!") == fold("STRASSE 1") == "strasse 1"


@given(st.text())
def test_folding_is_blind_to_what_it_folds(text):
    assert fold(text) == fold(f" {text}\n")
    assert fold(normalize_text(text, "NFC")) == fold(normalize_text(normalize_text(text, "NFC"), "NFKC"))


@settings(deadline=None, max_examples=400)
@given(texts)
def test_a_batch_becomes_what_each_text_becomes(found):
    assert fold_texts(array(found)).to_pylist() == [fold(text) for text in found]
    for form in ("NFC", "NFKC"):
        assert normalize_texts(array(found), form).to_pylist() == [normalize_text(text, form) for text in found]


def test_every_character_alone_and_between_letters():
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for found in (characters, [f"a{character}e" for character in characters]):
        assert fold_texts(array(found)).to_pylist() == [fold(text) for text in found]
        for form in ("NFC", "NFKC"):
            assert normalize_texts(array(found), form).to_pylist() == [normalize_text(text, form) for text in found]


@given(texts)
def test_keys_are_equal_where_texts_are(found):
    told = keys(array(["", *found])[1:]).tolist()
    assert len(set(told)) == len(set(found))
    assert told == keys(array(found)).tolist()


def test_the_filter_counts_what_it_changes_and_drops_what_it_empties():
    run = make_filter("normalize", Normalize(form="NFC"))
    told = run(Texts(array(["1", "2", "3"]), array([" a ", "b", "\x07"])))
    assert told.text.to_pylist() == ["a", "b", ""]
    assert list(told.reasons) == [None, None, "empty after normalization"]
    assert told.changed == {"normalized": 2}
    assert run(Texts(array(["1"]), array(["as it is"]))).text is None
