import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from lineage_artifacts import INPUTS, ORDER, chain, laid_out, packaged

from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.lineage import bundle
from hermitcrab.lineage.dsse import P256_ORDER, open_envelope
from hermitcrab.lineage.keys import keygen
from hermitcrab.lineage.sign import sign_package
from hermitcrab.lineage.statements import statement
from hermitcrab.lineage.verify import verify
from hermitcrab.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sign")
    store = Store(folder / "store")
    return packaged(store, chain(store, folder))


@pytest.fixture(scope="module")
def claims(made):
    return [statement(made[name], [made[i] for i in INPUTS[name]]) for name in ORDER]


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return keygen(tmp_path_factory.mktemp("key") / "k.pem")


@pytest.fixture
def folder(made, tmp_path):
    return laid_out(made["package"], tmp_path / "package")


def model_signing(folder, public):
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    command += ["--signature", str(folder / "model.sig"), "--public_key", str(public)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_model_signing_command_verifies_what_was_signed_and_sees_a_change(folder, claims, key, tmp_path):
    sign_package(folder, claims, key.private)
    told = model_signing(folder, key.public)
    assert told.returncode == 0, told.stdout + told.stderr
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert model_signing(moved, key.public).returncode == 0
    (moved / "config.json").write_text("{}")
    assert model_signing(moved, key.public).returncode != 0


def test_claims_are_one_envelope_a_line_in_the_order_of_the_stages(folder, claims, key):
    sign_package(folder, claims, key.private)
    lines = (folder / "claims.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [open_envelope(line).statement for line in lines] == claims
    assert {open_envelope(line).keyid for line in lines} == {key.fingerprint}


def test_the_signature_covers_every_file_but_itself(folder, claims, key):
    sign_package(folder, claims, key.private)
    files = bundle.read_bundle((folder / "model.sig").read_bytes()).files()
    here = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(files) == here - {"model.sig"}
    assert {"claims.jsonl", "signer.pub.pem"} < set(files)


# `.gitattributes` at the top is what a hub puts there: told and left out (test_verify.py), and not signed.
@pytest.mark.parametrize("name", [".hidden", "adapter/.gitattributes", ".git/config", ".github/x", ".gitignore"])
def test_dotfiles_and_what_belongs_to_git_are_not_ignored(tmp_path, made, claims, key, name):
    folder = laid_out(made["package"], tmp_path / "p")
    sign_package(folder, claims, key.private)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    failures = [check.message for check in verify(folder).failures if check.file == name]
    assert any("extra" in message for message in failures)
    with pytest.raises(HermitcrabError, match="not as the package stage left it"):
        sign_package(folder, claims, key.private)
    (folder / name).unlink()


def test_a_signed_git_file_is_in_the_signature(tmp_path, key):
    """The library leaves `.git*` out unless told otherwise; the folder here is signed by the inner function alone."""
    from hermitcrab.lineage.sign import _sign_folder

    (tmp_path / "m").mkdir()
    (tmp_path / "m" / ".gitattributes").write_text("x")
    signed = bundle.read_bundle(_sign_folder(tmp_path / "m", key.private))
    assert list(signed.files()) == [".gitattributes"]


def test_a_folder_that_is_not_what_the_package_stage_left_is_not_signed(folder, claims, key):
    (folder / "config.json").write_text("{}")
    with pytest.raises(HermitcrabError, match=r"config\.json: not as the package stage left it"):
        sign_package(folder, claims, key.private)
    assert not (folder / "model.sig").exists()


def test_a_link_is_not_signed(folder, claims, key, tmp_path):
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(HermitcrabError, match="symbolic link"):
        sign_package(folder, claims, key.private)


def test_the_package_statement_comes_last(folder, claims, key):
    with pytest.raises(HermitcrabError, match="last statement"):
        sign_package(folder, claims[:-1], key.private)


def test_a_key_that_cannot_sign_leaves_the_folder_as_it_was(folder, claims, key):
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(UsageError):
        sign_package(folder, claims, key.public)
    assert sorted(p.name for p in folder.iterdir()) == before


def test_signing_again_replaces_the_signature(folder, claims, key, tmp_path):
    sign_package(folder, claims, key.private)
    other = keygen(tmp_path / "other.pem")
    sign_package(folder, claims, other.private)
    assert verify(folder, other.public).authenticated
    assert not verify(folder, key.public).ok


def test_the_private_key_is_in_no_file_of_the_package(folder, claims, key):
    sign_package(folder, claims, key.private)
    secret = key.private.read_bytes().splitlines()[1]
    assert not any(secret in p.read_bytes() or b"PRIVATE" in p.read_bytes() for p in folder.rglob("*") if p.is_file())


def test_the_signature_file_is_json_in_its_one_spelling(folder, claims, key):
    sign_package(folder, claims, key.private)
    data = (folder / "model.sig").read_bytes()
    assert bundle.is_canonical(data, bundle.read_bundle(data))
    assert json.loads(data)["mediaType"] == bundle.MEDIA_TYPE


def test_the_other_spelling_of_a_valid_signature_fails(folder, claims, key):
    """(r, n - s) is as valid to the curve as (r, s): whoever writes it has changed the file without the key."""
    sign_package(folder, claims, key.private)
    made = bundle.read_bundle((folder / bundle.NAME).read_bytes())
    r, s = decode_dss_signature(made.signature)
    assert s <= P256_ORDER // 2
    other = replace(made, signature=encode_dss_signature(r, P256_ORDER - s))
    (folder / bundle.NAME).write_bytes(other.as_bytes())
    assert [check.file for check in verify(folder).failures] == [bundle.NAME]
