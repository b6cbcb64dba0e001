import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hermitcrab.digest import digest_bytes
from hermitcrab.errors import UsageError
from hermitcrab.lineage.keys import default_key, fingerprint, keygen, load_private, load_public


def test_a_new_key_is_readable_by_its_owner_alone_and_its_public_half_lies_beside_it(tmp_path):
    key = keygen(tmp_path / "mine.pem")
    assert stat.S_IMODE(key.private.stat().st_mode) == 0o600
    assert key.public == tmp_path / "mine.pub.pem"
    assert key.private.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert (
        fingerprint(load_public(key.public)) == fingerprint(load_private(key.private).public_key()) == key.fingerprint
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.pem", "mine.pub.pem"]


@pytest.mark.parametrize("taken", ["mine.pem", "mine.pub.pem"])
def test_a_key_is_never_overwritten(tmp_path, taken):
    (tmp_path / taken).write_text("precious")
    with pytest.raises(UsageError, match="never overwritten"):
        keygen(tmp_path / "mine.pem")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(taken, "precious")]


def test_fingerprint_is_the_digest_of_the_der_of_the_public_key(tmp_path):
    public = load_public(keygen(tmp_path / "k.pem").public)
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert fingerprint(public) == digest_bytes(der)


def test_default_key_is_made_once_in_the_configuration_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = default_key()
    assert path == tmp_path / "config" / "hermitcrab" / "signing-key.pem"
    first = path.read_bytes()
    assert default_key() == path
    assert path.read_bytes() == first
    told = capsys.readouterr().err
    assert told.count("made a signing key") == 1
    assert first.splitlines()[1].decode() not in told


def test_default_key_falls_back_to_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_key() == tmp_path / ".config" / "hermitcrab" / "signing-key.pem"


def pem(key, encryption=None):
    wanted = encryption or serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, wanted)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "expected a private key"),
        (lambda: b"\x00\xff" * 40, "expected a private key"),
        (lambda: pem(rsa.generate_private_key(65537, 2048)), "P-256. Received: RSA"),
        (lambda: pem(ec.generate_private_key(ec.SECP384R1())), "Received: an elliptic-curve key on secp384r1"),
        (
            lambda: pem(ec.generate_private_key(ec.SECP256R1()), serialization.BestAvailableEncryption(b"x")),
            "has a password",
        ),
    ],
)
def test_what_cannot_sign_is_refused_in_one_sentence(tmp_path, make, message):
    path = tmp_path / "key.pem"
    path.write_bytes(make())
    path.chmod(0o600)
    with pytest.raises(UsageError, match=message):
        load_private(path)


def test_the_wrong_half_of_a_pair_is_told_apart(tmp_path):
    key = keygen(tmp_path / "k.pem")
    with pytest.raises(UsageError, match="this is a public key"):
        load_private(key.public)
    with pytest.raises(UsageError, match="keep it to yourself"):
        load_public(key.private)
    with pytest.raises(UsageError, match="no such key"):
        load_public(tmp_path / "absent.pem")


def test_a_private_key_that_others_may_read_is_warned_of(tmp_path, capsys):
    key = keygen(tmp_path / "k.pem")
    key.private.chmod(0o644)
    load_private(key.private)
    assert "chmod 600" in capsys.readouterr().err
