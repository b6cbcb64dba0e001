"""Keys: hashes alone are kept, every comparison is whole, limits come back with time."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest
from tiny import crab

pytest.importorskip("pydantic")
from hermitcrab.errors import HermitcrabError
from hermitcrab.serve import keys as module
from hermitcrab.serve.keys import Key, Keys, make_key, read_keys
from hermitcrab.serve.requests import Refusal


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def test_a_made_key_opens_and_its_file_has_only_its_hash(tmp_path, capsys):
    file = tmp_path / "keys.json"
    status, out, _ = crab("apikey", "alice", "--file", str(file), "--concurrent", "2", "--json", capsys=capsys)
    assert status == 0
    alice, bob = json.loads(out)["key"], make_key("bob", file, 60, None)
    assert alice not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    keys = read_keys((), file)
    assert [key.name for key in keys.keys] == ["alice", "bob"]
    assert keys.find(bearer(alice)).concurrent == 2
    assert keys.find(bearer(bob)).requests_per_minute == 60
    assert keys.find(f"bearer {bob}".encode()).name == "bob"
    for wrong in (
        b"",
        b"Bearer",
        bearer(""),
        bearer(alice[:-1]),
        bearer(alice + "x"),
        alice.encode(),
        b"Basic " + alice.encode(),
        bearer("x" * 5000),
    ):
        assert keys.find(wrong) is None


def test_every_key_is_compared_whole_whichever_fits(monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(module.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
    keys = Keys([Key(name, hashlib.sha256(name.encode()).digest()) for name in ("a", "b", "c")])
    counts = []
    for given in ("a", "c", "nobody", "x" * 900):
        compared.clear()
        keys.find(bearer(given))
        counts.append(list(compared))
    assert counts == [[(32, 32)] * 3 + [(6, 6)]] * 4


def test_limits_are_a_key_s_own_and_come_back_with_time():
    key, other = Key("a", b"", requests_per_minute=2), Key("b", b"", concurrent=1)
    now = key.filled
    for _ in range(2):
        with key.use(now):
            pass
    with pytest.raises(Refusal) as refused, key.use(now):
        pass
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert refused.value.retry == pytest.approx(30)
    with key.use(now + 30):
        pass
    with other.use():
        with pytest.raises(Refusal, match="its limit") as refused, other.use():
            pass
        assert refused.value.status == 429
    with other.use():
        pass


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no file of keys"),
        ("[]", "is no file of keys"),
        ('{"keys": [{"name": 1}]}', "is no file of keys"),
        ('{"keys": [{"name": "a", "sha256": "00"}]}', "expected sha256"),
        ('{"keys": [{"name": "a", "sha256": "' + "0" * 64 + '", "requests_per_minute": 0}]}', "limits from 1"),
        ('{"keys": [{"name": "a", "sha256": "' + "0" * 64 + '", "limit": 1}]}', "expected sha256"),
        (
            '{"keys": [' + ", ".join(['{"name": "a", "sha256": "' + "0" * 64 + '"}'] * 2) + "]}",
            "two API keys are named",
        ),
    ],
)
def test_a_strange_file_of_keys_is_told(tmp_path, content, said):
    (tmp_path / "keys.json").write_text(content)
    (tmp_path / "keys.json").chmod(0o600)
    with pytest.raises(HermitcrabError, match=said):
        read_keys((), tmp_path / "keys.json")


def test_a_file_that_others_may_write_to_is_refused(tmp_path):
    make_key("a", tmp_path / "keys.json", None, None)
    (tmp_path / "keys.json").chmod(0o666)
    with pytest.raises(HermitcrabError, match="others than its owner may write"):
        read_keys((), tmp_path / "keys.json")
    with pytest.raises(HermitcrabError, match="has 1 to 64 letters"):
        make_key("a b", tmp_path / "other.json", None, None)
