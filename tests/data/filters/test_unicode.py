import gzip
import random
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.data.filters import Texts, make_filter
from hermitcrab.recipe.filters import Unicode

pytest.importorskip("ftfy", reason="needs the extra [data]")
pytest.importorskip("opencc", reason="needs the extra [data]")


def apply(*texts, **options):
    ids = pa.array([str(i) for i in range(len(texts))])
    found = make_filter("unicode", Unicode(**options))(Texts(ids, pa.array(texts, pa.large_string())))
    return (list(texts) if found.text is None else found.text.to_pylist()), found


@pytest.mark.parametrize("form", ["NFC", "NFKC", "none"])
@given(texts=st.lists(st.text(), min_size=1))
def test_what_was_written_once_stays(form, texts):
    once, found = apply(*texts, form=form, mojibake=False)
    again, second = apply(*once, form=form, mojibake=False)
    assert again == once
    assert not second.changed
    for text, reason in zip(once, found.reasons or [None] * len(once), strict=True):
        assert not {c for c in text if unicodedata.category(c) == "Cc"} - {"\n", "\t"}
        assert form == "none" or unicodedata.is_normalized(form, text)
        assert text == text.strip()
        assert (reason == "empty after normalization") == (text == "")


@given(texts=st.lists(st.text("aé\x00\t\n\r\x7f\x85 é中２"), min_size=1, max_size=5), cut=st.integers(0, 3))
def test_a_text_is_written_the_same_in_any_batch(texts, cut):
    whole, _ = apply(*texts)
    assert whole == [apply(text)[0][0] for text in texts]
    ids, column = pa.array(["x"] * (cut + len(texts))), pa.array(["pad é"] * cut + texts, pa.large_string())
    part = make_filter("unicode", Unicode())(Texts(ids.slice(cut), column.slice(cut)))
    assert (texts if part.text is None else part.text.to_pylist()) == whole


def test_texts_in_order_are_left_alone_and_not_copied():
    _, found = apply("plain text", "two\nlines\tand a tab", "café", "中文")
    assert found.text is None
    assert not found.changed
    assert list(found.reasons) == []


def test_of_each_kind():
    texts, found = apply("  cafe\u0301\x07\r\nline\rend\t\u00a0", "ﬁne ２", "\x00", "\x85 ")
    assert texts == ["café\nline\nend", "ﬁne ２", "", ""]
    assert list(found.reasons) == [None, None, "empty after normalization", "empty after normalization"]
    assert found.changed["unicode"] == 3
    assert apply("ﬁne ２", form="NFKC")[0] == ["fine 2"]
    assert apply("cafe\u0301 ", form="none")[0] == ["cafe\u0301"]


ENCODINGS = {"latin-1": 1.0, "windows-1252": 0.95, "macroman": 0.9, "cp437": 0.7, "windows-1250": 0.9}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_mojibake_is_mended(encoding):
    originals = [
        "Où est le café déjà payé ?",
        "Größe und Übermaß — „schön“",
        "Año nuevo, señor: ¿qué más?",
        "It’s “quoted” text",
    ]
    broken, wanted = [], []
    for text in originals:
        try:
            broken.append(text.encode().decode(encoding))
        except UnicodeDecodeError:
            continue
        wanted.append(text)
    mended, found = apply(*broken)
    right = sum(a == b for a, b in zip(mended, wanted, strict=True))
    assert right >= ENCODINGS[encoding] * len(wanted) > 1
    assert found.changed["mojibake mended"] >= right
    assert apply(*broken, mojibake=False)[1].changed["mojibake mended"] == 0


@pytest.mark.data
@pytest.mark.skipif(not list(Path("/usr/share/man/fr").rglob("*.gz")), reason="needs translated man pages")
def test_the_cheap_test_misses_little_of_what_ftfy_would_mend():
    import ftfy

    pages = [
        gzip.decompress(path.read_bytes()).decode() for path in sorted(Path("/usr/share/man/fr").rglob("*.gz"))[:40]
    ]
    paragraphs = [p for page in pages for p in page.split("\n") if not p.isascii()][:200]
    broken = [p.strip().encode().decode("latin-1") for p in paragraphs]
    would = sum(ftfy.fix_encoding(text) != text for text in broken)
    assert len(paragraphs) > 100
    assert apply(*broken)[1].changed["mojibake mended"] == would


def test_chinese_is_written_as_asked_but_not_japanese():
    texts, found = apply("漢字與電腦軟體", "简体字", "日本語の漢字を變える", chinese="simplified")
    assert texts == ["汉字与电脑软体", "简体字", "日本語の漢字を變える"]
    assert found.changed["simplified Chinese"] == 1
    assert found.found["texts with kana, not converted"] == 1
    assert apply("汉字与电脑", chinese="traditional")[0] == ["漢字與電腦"]


def test_lost_characters_are_counted():
    assert apply("lost \ufffd here")[1].found["texts with replacement characters"] == 1


def test_a_random_mix_is_written_as_by_one_plain_function():
    """The search over bytes finds every text that the plain way would change."""
    from hermitcrab.data.filters.unicode import tidy

    draw = random.Random(1)
    texts = [
        "".join(draw.choices("ab \n\t\r\x00\x1f\x7f\x80\xa0é\u0301中\u3000", k=draw.randrange(6))) for _ in range(4000)
    ]
    assert apply(*texts, mojibake=False)[0] == [tidy(text, "NFC") for text in texts]
