import csv
import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from hermitcrab.data.filters import Texts, make_filter
from hermitcrab.errors import UsageError
from hermitcrab.recipe.filters import Language

pytest.importorskip("pycld2", reason="needs the extra [data]")

SENTENCES = {
    "en": "A model is a tool, and it should say where its data came from before anybody is asked to trust it.",
    "zh": "模型应当说明它的数据从何而来，然后才能要求人们信任它。",
    "ja": "モデルは信頼される前に、そのデータがどこから来たのかを説明しなければなりません。",
    "ko": "모델은 신뢰를 요구하기 전에 데이터가 어디에서 왔는지 설명해야 합니다.",
    "de": "Ein Modell sollte sagen, woher seine Daten stammen, bevor man irgendjemanden bittet, ihm zu vertrauen.",
    "fr": "Un modèle devrait dire d'où viennent ses données avant que l'on demande à quiconque de lui faire confiance.",
    "es": "Un modelo debería decir de dónde vienen sus datos antes de que se pida a nadie que confíe en él.",
    "ru": "Модель должна сказать, откуда взялись её данные, прежде чем кого-либо попросят ей довериться.",
}


def apply(*texts, **options):
    ids = pa.array([str(i) for i in range(len(texts))])
    return make_filter("language", Language(**options))(Texts(ids, pa.array(texts, pa.large_string())))


def told(*texts):
    found = apply(*texts).found
    return {language: count for language, count in found.items() if count}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_is_told(language):
    assert told(SENTENCES[language]) == {language: 1}


def test_only_kept_languages_stay_and_the_others_are_named():
    found = apply(*SENTENCES.values(), keep=["en", "zh"])
    assert list(found.reasons[:2]) == [None, None]
    assert list(found.reasons[2:]) == [f"language is {name}" for name in list(SENTENCES)[2:]]
    assert found.text is None


def test_without_keep_languages_are_only_counted():
    found = apply(*SENTENCES.values())
    assert list(found.reasons) == []
    assert found.found.total() == len(SENTENCES)


def test_what_cannot_be_told_stays_or_goes_as_asked():
    texts = ("12345 ### 67", "", "\x00\x01")
    assert list(apply(*texts, keep=["en"]).reasons) == []
    assert list(apply(*texts, keep=["en"], unsure="drop").reasons) == ["language is not certain"] * 3
    assert told(*texts) == {"unsure": 3}


def test_names_of_programs_do_not_make_chinese_english():
    assert told("在 LibreOffice Writer 中打开文件，然后选择格式。") == {"zh": 1}
    assert told("The character 的 is the most frequent one of written Chinese, and 是 is among the next.") == {"en": 1}


def test_control_characters_and_odd_code_points_do_not_stop_it():
    assert told(f"\x07{SENTENCES['en']}\x1b\ufffe\U0010ffff") == {"en": 1}


def test_a_long_text_is_judged_by_pieces_of_it():
    cut = "é" * 5 + SENTENCES["fr"] * 400  # pieces begin within characters
    assert told(cut, SENTENCES["zh"] * 400) == {"fr": 1, "zh": 1}


def test_an_answer_does_not_depend_on_the_batch():
    each = [told(text) for text in SENTENCES.values()]
    assert told(*SENTENCES.values()) == {k: v for one in each for k, v in one.items()}


def test_an_unknown_language_is_refused():
    with pytest.raises(UsageError, match="keep has qqq"):
        apply("text", keep=["en", "qqq"])


@pytest.mark.data
@pytest.mark.parametrize(("file", "language", "least"), [("reviews_en", "en", 0.98), ("reviews_zh", "zh", 0.98)])
def test_reviews_of_real_people_are_told(file, language, least):
    path = Path(__file__).parents[4] / "shared" / "data" / "sentiment" / f"{file}.csv.gz"
    if not path.exists():
        pytest.skip("needs the shared data folder")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [row[0] for row in csv.reader(lines)][1:4000:8]
    assert apply(*texts).found[language] >= least * len(texts)
