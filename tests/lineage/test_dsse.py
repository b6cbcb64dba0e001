import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.digest import canonical_json
from hermitcrab.errors import HermitcrabError
from hermitcrab.lineage.dsse import decode, open_envelope, pae, parse_canonical, sign_statement, signature_holds
from hermitcrab.lineage.keys import fingerprint, keygen, load_private


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return load_private(keygen(tmp_path_factory.mktemp("key") / "k.pem").private)


def test_pae_is_that_of_the_specification():
    # The example of https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md
    assert pae(b"hello world", "http://example.com/HelloWorld") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_an_envelope_gives_back_its_statement_and_its_signature_holds(key):
    statement = {"b": [1, 2.5, None, "ü"], "a": {"x": True}}
    line = sign_statement(statement, key)
    envelope = open_envelope(line)
    assert envelope.statement == statement
    assert envelope.keyid == fingerprint(key.public_key())
    assert signature_holds(key.public_key(), envelope.signature, envelope.payload)
    assert not signature_holds(key.public_key(), envelope.signature, envelope.payload + b" ")
    assert b"\n" not in line


def test_the_same_statement_and_key_give_the_same_bytes(key):
    assert sign_statement({"a": 1}, key) == sign_statement({"a": 1}, key)


def test_what_json_cannot_carry_is_refused(key):
    with pytest.raises(HermitcrabError, match="canonical JSON"):
        sign_statement({"a": float("nan")}, key)
    with pytest.raises(HermitcrabError, match="canonical JSON"):
        sign_statement({"a": 2**53}, key)


numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(values)
def test_canonical_json_is_read_back_as_it_was_written(value):
    data = canonical_json(value)
    assert canonical_json(parse_canonical(data)) == data


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_but_never_crash(data):
    with contextlib.suppress(HermitcrabError):
        assert canonical_json(parse_canonical(data)) == data
    with pytest.raises(HermitcrabError):
        open_envelope(data)


@pytest.mark.parametrize("text", [b'{"a": 1}', b'{"b":1,"a":2}', b'{"a":1,"a":1}', b"1.0", b"1e3", b"-0", b'"\\u0041"'])
def test_another_spelling_of_the_same_value_is_refused(text):
    json.loads(text)
    with pytest.raises(HermitcrabError, match="canonical form"):
        parse_canonical(text)


def test_nesting_without_end_is_refused():
    with pytest.raises(HermitcrabError, match="not readable"):
        parse_canonical(b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize("text", ["QQ", "QR==", "QQ==\n", "QQ= =", "Q", "é"])
def test_base64_has_one_spelling(text):
    with pytest.raises(HermitcrabError):
        decode(text)
    assert decode("QQ==") == b"A"


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e | {"extra": 1},
        lambda e: e | {"payloadType": "text/plain"},
        lambda e: e | {"signatures": []},
        lambda e: e | {"signatures": e["signatures"] * 2},
        lambda e: e | {"signatures": [e["signatures"][0] | {"cert": "x"}]},
        lambda e: e | {"payload": "W10="},
        lambda e: {"payload": e["payload"]},
    ],
)
def test_an_envelope_of_another_form_is_refused(key, change):
    envelope = json.loads(sign_statement({"a": 1}, key))
    with pytest.raises(HermitcrabError):
        open_envelope(canonical_json(change(envelope)))
