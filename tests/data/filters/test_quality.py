import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hermitcrab.data.filters import Texts, make_filter
from hermitcrab.data.filters import measures as m
from hermitcrab.data.filters.measures import Measures
from hermitcrab.recipe.filters import Quality

PROSE = (
    "The crab that lives in a shell of another animal has to find a larger one as it grows.\n"
    "It looks at the opening of each shell, turns it over, and measures the inside with its legs.\n"
    "To change houses is to be without one for a moment, and most of them do it at night.\n"
    "Nobody holds it against the crab, and the snail that made the shell does not need it.\n"
)
CHINESE = (
    "寄居蟹住在别的动物留下的壳里，长大以后就要去找一个更大的壳。\n"
    "它先看壳口的大小，再把壳翻过来，用腿去量里面有多宽。\n"
    "搬家的时候，它有一会儿什么也没有，所以多半在夜里进行。\n"
    "没有人因此责怪它，而做壳的螺也不再需要这个壳了。\n"
)


def texts_of(*texts):
    return Texts(pa.array([str(i) for i in range(len(texts))]), pa.array(texts, pa.large_string()))


def apply(*texts, **options):
    return make_filter("quality", Quality(**options))(texts_of(*texts))


def reason(text, *rules, **options):
    return (list(apply(text, rules=list(rules), **options).reasons) or [None])[0]


@pytest.mark.parametrize("text", [PROSE, CHINESE])
@pytest.mark.parametrize("rule", ["length", "gopher", "repetition", "c4", "fineweb", "ratios"])
def test_prose_in_either_language_stays(text, rule):
    assert reason(text, rule) is None


BROKEN = [
    ("length", "too short for that", "fewer than 50 words"),
    ("length", "word " * 100_001, "more than 100,000 words"),
    ("gopher", "a b c d e f to of the be " * 20, "words too short"),
    ("gopher", "the of and incomprehensibilities electroencephalography " * 9 + "internationalizations " * 40, "words too long"),
    ("gopher", "the creature inside of another #shell #legs " * 20, "too many #"),
    ("gopher", "the creature… inside of another… shell " * 20, "too many ellipses"),
    ("gopher", "• the creature and its houses, with snails to make them\n" * 20, "too many bullet lines"),
    ("gopher", "the creatures and the shells of all these animals that live there...\n" * 20, "too many lines end in an ellipsis"),
    ("gopher", "the 12345 of 6789 " * 20, "too few words with a letter"),
    ("gopher", "crabs shells legs snails water night " * 20, "too few stop words"),
    ("repetition", PROSE * 2, "duplicate lines"),
    ("repetition", "A line.\n\n" * 4 + PROSE, "duplicate lines"),
    ("repetition", "shell and crab " * 30, "most frequent 2-gram"),
    ("repetition", CHINESE + CHINESE.replace("\n", ""), "duplicate 5-grams"),
    ("fineweb", PROSE.replace(".", ""), "too few lines end in punctuation"),
    ("fineweb", "A short one.\nAnother one.\nAnd a third.\n" + PROSE[:87], "too many short lines"),
    ("ratios", "1234567890 and 1234567890", "too many digits"),
    ("ratios", "==== ---- **** ++++ word", "too many symbols"),
    ("c4", "No end mark here at all\nnor on this other line of it", "no line is left"),
    ("c4", PROSE + "Lorem ipsum dolor sit amet, it says.", "lorem ipsum"),
    ("c4", PROSE + "if (a) { return the value of it; }.", "curly bracket"),
    ("c4", "Only one sentence stands in this text.", "fewer than 3 sentences"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "text", "why"), BROKEN)
def test_each_rule_names_its_reason(rule, text, why):
    assert reason(text, rule) == f"{rule}: {why}"


def test_the_first_rule_that_is_broken_is_the_reason():
    assert reason("==== ----", "ratios", "length") == "ratios: too many symbols"
    assert reason("==== ----", "length", "ratios") == "length: fewer than 50 words"


def test_c4_cuts_lines_and_counts_them():
    menu = "Home\nAbout us and our terms of use.\nNo end mark on this line here\nToo short.\n"
    found = apply(menu + PROSE.replace("night", "night[12]"), PROSE, rules=["c4"])
    assert found.text.to_pylist() == [PROSE.rstrip("\n"), PROSE.rstrip("\n")]
    assert found.found == {"lines cut, no end mark": 2, "lines cut, boilerplate": 1, "lines cut, fewer than 5 words": 1}


def test_later_rules_see_what_c4_left():
    text = PROSE + "a line without an end mark\n" * 40
    assert reason(text, "repetition") == "repetition: duplicate lines"
    assert reason(text, "c4", "repetition") is None


def test_options_of_a_rule_that_is_not_asked_are_refused():
    with pytest.raises(ValidationError, match="fineweb has options but is not among rules"):
        Quality(rules=["gopher"], fineweb={"short_line": 20})


@given(texts=st.lists(st.text("ab1#.… \n\t中，•", max_size=40), min_size=1, max_size=4))
def test_measures_are_those_of_plain_python(texts):
    measured = Measures(texts_of(*texts))
    lines = [[" ".join(line.split()) for line in text.split("\n") if line.strip()] for text in texts]
    assert measured.count(m.CHARACTERS).tolist() == [len("".join(text.split())) for text in texts]
    assert measured.count(m.LETTERS).tolist() == [sum(c.isalpha() for c in text) for text in texts]
    assert measured.count(m.DIGITS).tolist() == [sum(c.isdigit() for c in text) for text in texts]
    assert measured.lines.tolist() == [len(found) for found in lines]
    ended = measured.line_share(measured.line(m.L_ENDED) > 0)
    assert ended.tolist() == [sum(x[-1] in m.END_MARKS for x in found) / max(len(found), 1) for found in lines]
    again = [len(found) - len(set(found)) for found in lines]
    assert measured.duplicates()[0].tolist() == [a / max(len(found), 1) for a, found in zip(again, lines, strict=True)]


@given(texts=st.lists(st.sampled_from([PROSE, CHINESE, "short", PROSE * 2, ""]), min_size=1, max_size=5))
def test_an_answer_does_not_depend_on_the_batch(texts):
    rules = ["length", "gopher", "repetition", "c4", "fineweb", "ratios"]
    assert (list(apply(*texts, rules=rules).reasons) or [None] * len(texts)) == [reason(text, *rules) for text in texts]
