import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.report.words import excerpt, mask, number, plain, seconds, size


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe+x@mail.example.co.uk today", "write to [email] today"),
        ("call +44 20 7946 0958.", "call [phone]."),
        ("(555) 123-4567 or 0049-89-1234567", "[phone] or [phone]"),
        ("138 0013 8000 打给我", "[phone] 打给我"),
        ("seen in 1999, rated 8.5 of 10, at 20:15", "seen in 1999, rated 8.5 of 10, at 20:15"),
        ("an @ alone and a@b", "an @ alone and a@b"),
    ],
)
def test_addresses_and_numbers_are_masked_and_other_text_is_not(text, masked):
    assert mask(text) == masked


def test_an_excerpt_is_masked_before_it_is_cut():
    text = "x" * 270 + " someone@example.com"
    assert excerpt(text) == "x" * 270 + " [email]"
    assert "someone" not in excerpt("y" * 275 + " someone@example.com")


@given(st.text())
def test_nothing_that_moves_a_cursor_or_turns_letters_stays(text):
    shown = plain({"a": [text]})["a"][0]
    assert not set(shown) & {
        chr(c) for c in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), 0x2066)
    }
    assert shown.encode("utf-8").decode() == shown


def test_control_characters_are_shown_as_their_code():
    assert plain("a\x1b[2Jb\u202ec") == "a\\u001b[2Jb\\u202ec"
    assert plain({"n": 1, "x": None, "t": ("é", True)}) == {"n": 1, "x": None, "t": ["é", True]}


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(0.8124), "0.812"), (number(None), "–"),
        (number(4.1e-6), "4.1e-06"), (number(0.0), "0.000"), (number(12345.67), "12,345.7"),
        (seconds(0.0421), "0.042 s"), (seconds(8.12), "8.1 s"), (seconds(372), "6 min 12 s"),
        (seconds(11221), "3 h 07 min"),
        (size(900), "900 B"), (size(3 << 20), "3.0 MiB"), (size(5.5 * 2**30), "5.5 GiB"),
    ],
)  # fmt: skip
def test_figures_are_short(shown, expected):
    assert shown == expected
