import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.data.filters import Texts, make_filter
from hermitcrab.data.filters import checksums as c
from hermitcrab.data.filters.patterns import PATTERNS
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.recipe.filters import Personal

draw = random.Random(7)


def apply(*texts, **options):
    ids = pa.array([f"row{i}" for i in range(len(texts))])
    found = make_filter("personal", Personal(**options))(Texts(ids, pa.array(texts, pa.large_string())))
    return (list(texts) if found.text is None else found.text.to_pylist()), found


def some(alphabet, count):
    return "".join(draw.choices(alphabet, k=count))


def ending(stem, alphabet, valid):
    """The one check character that makes it valid, by trying all."""
    (end,) = [end for end in alphabet if valid(stem + end)]
    return stem + end


def identity_card():
    birthday = f"{draw.randrange(1930, 2020)}{draw.randrange(1, 13):02}{draw.randrange(1, 29):02}"
    stem = f"{draw.choice(sorted(c.PROVINCES))}{some('0123456789', 4)}{birthday}{some('0123456789', 3)}"
    return ending(stem, "0123456789X", c.identity_card)


def credit_code():
    stem = f"9{draw.choice('123')}{draw.choice('123456')}1{some('0123456789', 4)}{some(c.CREDIT_ALPHABET, 9)}"
    return ending(stem, c.CREDIT_ALPHABET, c.credit_code)


def bank_card():
    return ending("62" + some("0123456789", draw.choice([13, 16])), "0123456789", c.luhn)


MADE = {
    "identity-card-cn": identity_card,
    "credit-code-cn": credit_code,
    "bank-card": bank_card,
    "mobile-cn": lambda: f"1{draw.choice('3456789')}{some('0123456789', 9)}",
    "e-mail": lambda: f"{some('abcdef', 6)}.{some('xyz', 3)}{draw.randrange(99)}@{some('mnopq', 5)}.{draw.choice(['com', 'com.cn'])}",
    "ip-address": lambda: f"{draw.choice([8, 23, 101, 114, 202])}.{draw.randrange(1, 99)}.{draw.randrange(256)}.{draw.randrange(1, 255)}",
    "plate-cn": lambda: f"{draw.choice('京沪粤苏浙')}{some('ABCDEF', 1)}{draw.choice(['·', ''])}{some('0123456789', 5)}",
    "passport-cn": lambda: f"E{some('0123456789', 8)}",
    "token": lambda: draw.choice(["ghp_" + some("abcdefABCDEF0123456789", 36), "AKIA" + some("ABCDEFGHIJ234567", 16)]),
}  # fmt: skip
AROUND = {
    "passport-cn": ["护照号码{}，有效", "passport no. {} was"],
    "plate-cn": ["车牌{}停在门口", "他的车是{}。"],
}
EVERYWHERE = ["号码是{}，请记下", "他的{}和她的", "The number {} is his.", "{}", "（{}）", "a: {}; b", "见{}。"]


def near_misses(kind):
    """Values of which one digit is another, so that the checksum is wrong; and what has the shape by chance."""
    if kind in ("identity-card-cn", "credit-code-cn", "bank-card"):
        for _ in range(200):
            value = MADE[kind]()
            at = draw.randrange(len(value) - 4, len(value) - 1)
            yield (
                value[:at] + str((int(value[at]) + draw.randrange(1, 10)) % 10) + value[at + 1 :]
                if value[at].isdigit()
                else value[:-1]
            )
    yield from BY_CHANCE


BY_CHANCE = """version 1.2.3.4
192.168.0.1 and 127.0.0.1
12345678901
order 20240101123456789
3.14159265358979
10:20:30
::2
user@host
@name
a@b
E12345678
粤语和苏州
std::vector::iterator
0000000000000000
1.38-1.50 20240131""".splitlines()


@pytest.mark.parametrize("kind", MADE)
def test_true_values_are_found_wherever_they_stand(kind):
    """Recall 1.0 on made values, in English and in Chinese without a space around them."""
    values = [MADE[kind]() for _ in range(200)]
    texts = [draw.choice(AROUND.get(kind, EVERYWHERE)).format(value) for value in values]
    written, found = apply(*texts)
    assert found.found[kind] == 200
    assert found.found.total() == 200
    assert all(f"<{kind}>" in text for text in written)
    assert not any(value in text for value, text in zip(values, written, strict=True))


def test_near_misses_are_left_alone():
    """Precision 1.0 on numbers of which a digit is wrong, but for a checksum that a second error happens to mend."""
    for kind in MADE:
        texts = list(near_misses(kind))
        _, found = apply(*texts)
        assert found.found[kind] == 0, kind
        assert found.text is None or found.found.total() < 0.02 * len(texts)


def test_numbers_of_the_standards():
    assert c.identity_card("11010519491231002X")  # GB 11643-1999, annex
    assert c.identity_card("440524188001010014") is False  # born in 1880
    assert c.credit_code("91350100M000100Y43")  # GB 32100-2015
    assert c.luhn("4111111111111111")
    assert not c.luhn("4111111111111112")


def test_keys_and_secrets_are_found():
    pem = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7x\nq83vEjRWeJCr\n-----END RSA PRIVATE KEY-----"
    cut = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B"
    written, found = apply(
        f"a\n{pem}\nb", cut, "password = 'hJ8s0Kq2Lm9xZ1'", "密码：hJ8s0Kq2Lm9xZ1", "the password: remember it"
    )
    assert written[0] == "a\n<private-key>\nb"
    assert written[1] == "<private-key>"
    assert written[2] == "password = '<high-entropy>'"
    assert written[3] == "密码：<high-entropy>"
    assert written[4] == "the password: remember it"
    assert found.found == {"private-key": 2, "high-entropy": 2}


def test_policies(monkeypatch):
    text = "写信到 someone.else@example.com 或打 138 1234 5678"
    assert apply(text)[0] == ["写信到 <e-mail> 或打 <mobile-cn>"]
    assert apply(text, policy="mask")[0] == ["写信到 *******.****@*******.*** 或打 *** **** ****"]
    _, found = apply(text, "nothing here", policy="drop")
    assert list(found.reasons) == ["personal data: e-mail", None]
    monkeypatch.setenv("A_KEY", "0123456789abcdef")
    hashed = apply(text, "打 13812345678", policy="hash", key="env:A_KEY")[0]
    assert hashed[1].removeprefix("打 ") in hashed[0]  # equal values stay equal, however they are spaced
    monkeypatch.setenv("A_KEY", "another-key-of-16")
    assert apply(text, policy="hash", key="env:A_KEY")[0] != hashed[:1]


def test_a_key_that_is_missing_or_short_is_refused(monkeypatch):
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(UsageError, match="A_KEY is not set"):
        apply("x", policy="hash", key="env:A_KEY")
    monkeypatch.setenv("A_KEY", "short")
    with pytest.raises(UsageError, match="shorter than 16") as caught:
        apply("x", policy="hash", key="env:A_KEY")
    assert "short" not in str(caught.value).replace("shorter", "").replace("a short key", "")


@given(text=st.text("1380.@:-ab E京A身号x ", max_size=60))
def test_what_was_written_over_is_not_found_again(text):
    once, _ = apply(text)
    again, found = apply(*once)
    assert again == once
    assert not found.found


@given(text=st.text("0123456789X -@.ab京A:", max_size=60))
def test_the_hints_hide_no_value(text):
    """A text that the quick search passes over has no value by the patterns either."""
    personal = make_filter("personal", Personal())
    _, found = apply(text)
    assert bool(found.found) == bool(personal.spans(text, "r", PATTERNS))


def test_no_pattern_takes_long_on_text_made_to_hurt():
    """Each is linear: what follows ran for minutes on patterns that were not. Finishing is the test."""
    hurt = ["a" * 200_000, "a." * 100_000 + "@", "1 " * 100_000, ":" * 200_000, "-----BEGIN PRIVATE KEY-----" * 5_000, "密码:" * 60_000,
            "a@" + "b." * 100_000, "eyJ" + "a" * 200_000]  # fmt: skip
    _, found = apply(*hurt)
    assert found.found["e-mail"] == 0
    assert set(PATTERNS) >= set(MADE)


@pytest.mark.slow
def test_presidio_finds_what_it_knows():
    pytest.importorskip("presidio_analyzer", reason="needs the extra [data]")
    texts = ["IBAN GB33BUKB20201555555555 is", "my number is 212-555-0198", "ssn 536-90-4399", "no number at all"]
    written, found = apply(*texts, find=["iban", "us-ssn", "phone"])
    assert found.found == {"iban": 1, "us-ssn": 1, "phone": 1}
    assert written[0] == "IBAN <iban> is"
    assert written[3] == texts[3]


def test_names_by_a_model_of_the_user(tmp_path):
    spacy = pytest.importorskip("spacy", reason="needs the extra [data]")
    model = spacy.blank("en")
    model.add_pipe("entity_ruler").add_patterns(
        [{"label": "PERSON", "pattern": "Ada Lovelace"}, {"label": "GPE", "pattern": "London"}]
    )
    model.to_disk(tmp_path / "model")
    written, found = apply("Ada Lovelace lived in London, a@b.com.", entities=["person"], model=str(tmp_path / "model"))
    assert written == ["<person> lived in London, <e-mail>."]
    assert found.found == {"person": 1, "e-mail": 1}


def test_a_model_that_is_not_installed_is_named():
    pytest.importorskip("spacy", reason="needs the extra [data]")
    with pytest.raises(UsageError, match="python -m spacy download xx_no_such"):
        apply("x", entities=["person"], model="xx_no_such")


def test_an_error_of_a_library_never_quotes_the_text(monkeypatch):
    personal = make_filter("personal", Personal())

    class Fails:
        def search(self, text):
            raise ValueError(f"could not read {text}")

    personal.presidio = {"phone": Fails()}
    with pytest.raises(HermitcrabError, match=r"row 77 could not be searched \(ValueError\)") as caught:
        personal.spans("secret text", "77", PATTERNS)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__
