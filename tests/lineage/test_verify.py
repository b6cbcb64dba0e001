import base64
import json
import os
import shutil
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lineage_artifacts import COMPRESSED, INPUTS, ORDER, PARITY, chain, laid_out, packaged, rewritten

from hermitcrab.digest import canonical_json, digest_json
from hermitcrab.errors import UsageError
from hermitcrab.lineage import bundle
from hermitcrab.lineage.dsse import open_envelope, sign_statement
from hermitcrab.lineage.keys import keygen, load_private, public_pem
from hermitcrab.lineage.sign import _sign_folder, sign_package
from hermitcrab.lineage.statements import statement
from hermitcrab.lineage.verify import verify
from hermitcrab.store import Artifact, Store

FILES = [
    "README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "claims.jsonl", "comparison.json",
    "config.json", "gguf/tiny-reviews-Q8_0.gguf", "hermitcrab.json", "metrics.json", "ml-bom.cdx.json", "model.safetensors", "model.sig",
    "signer.pub.pem", "tensors.json", "tokenizer.json",
]  # fmt: skip


def claims_of(made):
    return [statement(made[name], [made[i] for i in INPUTS[name]]) for name in ORDER]


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return keygen(folder / "mine.pem"), keygen(folder / "other.pem")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    store = Store(folder / "store")
    return packaged(store, chain(store, folder))


@pytest.fixture(scope="module")
def signed(made, keys, tmp_path_factory):
    """A signed package. Tests that change it work on a copy (`package`) or change it back."""
    folder = laid_out(made["package"], tmp_path_factory.mktemp("signed") / "package")
    sign_package(folder, claims_of(made), keys[0].private)
    return folder


@pytest.fixture
def package(signed, tmp_path):
    return shutil.copytree(signed, tmp_path / "package")


def resigned(folder, key):
    """A new model.sig over what is there now: a dishonest maker with a key."""
    (folder / "model.sig").unlink(missing_ok=True)
    (folder / "model.sig").write_bytes(_sign_folder(folder, key.private))


def messages(result):
    return "\n".join(f"{check.file}: {check.message}" for check in result.failures)


def test_an_untouched_package_is_intact_and_its_signer_authenticated_by_a_key_alone(signed, keys):
    result = verify(signed)
    assert result.ok, messages(result)
    assert not result.authenticated
    assert result.summary.startswith("intact; signer not authenticated")
    result = verify(signed, keys[0].public)
    assert result.ok
    assert result.authenticated
    assert result.signer == keys[0].fingerprint
    told = json.loads(json.dumps(result.as_json()))
    assert (told["ok"], told["authenticated"], told["failures"]) == (True, True, [])
    assert {"check", "ok", "file", "message"} <= set(told["checks"][0])
    checked = {check.check for check in result.checks}
    assert {
        "canonical",
        "signature",
        "files",
        "claims",
        "chain",
        "subjects",
        "weights",
        "licenses",
        "parity",
    } <= checked


@contextmanager
def flipped(path, bit):
    data = path.read_bytes()
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(data)


@settings(max_examples=150, deadline=None)
@given(file=st.sampled_from(FILES), bit=st.integers(0, 2**20))
def test_any_flipped_bit_is_found_and_its_file_named(signed, keys, file, bit):
    assert sorted(p.relative_to(signed).as_posix() for p in signed.rglob("*") if p.is_file()) == FILES
    with flipped(signed / file, bit):
        for key in (None, keys[0].public):
            result = verify(signed, key)
            assert not result.ok
            assert not result.contradiction
            assert file in [check.file for check in result.failures]
            assert any(file in check.message for check in result.failures)


@settings(max_examples=150, deadline=None)
@given(bit=st.integers(0, 2**20))
def test_any_flipped_bit_of_the_signature_file_is_found(signed, bit):
    with flipped(signed / "model.sig", bit):
        assert "model.sig" in [check.file for check in verify(signed).failures]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n",
        lambda text: text.replace(",", ", ", 1),
        lambda text: text.replace('"keyid":""', '"keyid":"x"'),
        lambda text: text.replace("v0.3+json", "v0.2+json"),
        lambda text: text.replace('"tlogEntries":[]', '"tlogEntries":[{}]'),
        lambda text: text.replace('{"dsseEnvelope"', '{"more":1,"dsseEnvelope"'),
        lambda text: text.replace('"hint":"', '"hint":"0'),
        lambda text: text.replace("in-toto+json", "in-toto+jsom"),
    ],
)
def test_another_spelling_of_the_same_signature_fails(package, change):
    path = package / "model.sig"
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    assert [(check.check, check.file) for check in verify(package).failures] == [("canonical", "model.sig")]


def test_stray_bits_of_base64_fail(package):
    value = json.loads((package / "model.sig").read_bytes())
    signature = value["dsseEnvelope"]["signatures"][0]
    payload = value["dsseEnvelope"]
    for holder, name in ((signature, "sig"), (payload, "payload")):
        text = holder[name]
        if text.endswith("="):
            at = text.index("=") - 1
            alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
            stray = text[:at] + alphabet[alphabet.index(text[at]) + 1] + text[at + 1 :]
            assert base64.b64decode(stray) == base64.b64decode(text)
            holder[name] = stray
            (package / "model.sig").write_bytes(canonical_json(value))
            assert "stray bits" in messages(verify(package))
            holder[name] = text


def test_unsigned_has_its_own_message_and_damage_is_still_found(package, made):
    (package / "model.sig").unlink()
    result = verify(package)
    assert [check.check for check in result.failures] == ["signed"]
    assert "unsigned: there is no model.sig" in messages(result)
    (package / "config.json").write_text("{}")
    assert "config.json" in [check.file for check in verify(package).failures]


def test_a_package_that_was_never_signed_is_told_so_once(made, tmp_path):
    result = verify(laid_out(made["package"], tmp_path / "p"))
    assert [check.check for check in result.failures] == ["signed"]
    assert not result.authenticated


def test_the_wrong_key_has_its_own_message(signed, keys):
    result = verify(signed, keys[1].public)
    (failure,) = result.failures
    assert (failure.check, failure.file) == ("key", "model.sig")
    assert f"wrong key: signed by {keys[0].fingerprint}, expected {keys[1].fingerprint}" in failure.message
    assert not result.authenticated


def test_a_package_signed_anew_by_another_is_intact_but_not_by_the_expected_key(package, made, keys):
    sign_package(package, claims_of(made), keys[1].private)
    assert verify(package).ok
    assert "wrong key" in messages(verify(package, keys[0].public))


def test_missing_extra_and_changed_are_all_listed_each_with_its_own_message(package):
    (package / "tokenizer.json").unlink()
    (package / "notes.txt").write_text("hello")
    (package / "config.json").write_text("{}")
    told = messages(verify(package))
    assert "tokenizer.json: missing" in told
    assert "notes.txt: extra" in told
    assert "config.json: changed after signing" in told


def test_the_signers_key_missing_or_replaced(package, keys):
    (package / "signer.pub.pem").write_bytes(public_pem(load_private(keys[1].private).public_key()))
    told = messages(verify(package))
    assert "signer.pub.pem: changed after signing" in told
    assert "the signature does not hold under signer.pub.pem" in told
    (package / "signer.pub.pem").unlink()
    result = verify(package, keys[0].public)
    assert result.authenticated
    assert "signer.pub.pem: missing" in messages(result)
    assert not verify(package).ok


def test_an_empty_folder_and_no_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "unsigned: the folder holds no file" in messages(verify(tmp_path / "empty"))
    with pytest.raises(UsageError, match="no such folder"):
        verify(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not a folder"):
        verify(tmp_path / "file")


def test_a_key_that_is_no_public_key_is_wrong_usage(signed, keys):
    with pytest.raises(UsageError, match="keep it to yourself"):
        verify(signed, keys[0].private)


@pytest.mark.parametrize("target", ["config.json", "../outside", "/", "nowhere", "."])
def test_a_symbolic_link_is_refused_and_not_followed(package, target, tmp_path):
    (tmp_path / "outside").write_text("x")
    (package / "link").symlink_to(target)
    result = verify(package)
    assert "link: a symbolic link" in messages(result)


def test_a_file_replaced_by_a_link_to_the_same_bytes_is_refused(package, tmp_path):
    (package / "model.safetensors").rename(tmp_path / "model.safetensors")
    (package / "model.safetensors").symlink_to(tmp_path / "model.safetensors")
    assert "model.safetensors: a symbolic link" in messages(verify(package))


def test_a_pipe_is_refused_and_not_opened(package):
    os.mkfifo(package / "pipe")
    assert "pipe: neither file nor folder" in messages(verify(package))


def test_an_empty_folder_inside_is_extra(package):
    (package / "cache").mkdir()
    assert "cache: extra: an empty folder" in messages(verify(package))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe" * 50,
        b"[]",
        b"{}",
        b"null",
        b"[" * 200_000,
        b'{"verificationMaterial":{"publicKey":{"hint":"\\ud800"}},"dsseEnvelope":{"payload":"","signatures":[{"sig":""}]}}',
        b"1" * 10_000,
    ],
)
def test_garbage_in_any_json_file_is_a_failed_check(package, data):
    for name in ("model.sig", "claims.jsonl", "hermitcrab.json", "ml-bom.cdx.json", "README.md", "signer.pub.pem"):
        was = (package / name).read_bytes()
        (package / name).write_bytes(data)
        result = verify(package)
        assert name in [check.file for check in result.failures]
        json.dumps(result.as_json()).encode()
        "\n".join(check.message for check in result.checks).encode()
        (package / name).write_bytes(was)


def test_a_huge_signature_file_is_not_read(package):
    with open(package / "model.sig", "wb") as file:
        file.truncate((64 << 20) + 1)
    assert "67,108,865 bytes are too many" in messages(verify(package))


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["claims.jsonl", "hermitcrab.json", "ml-bom.cdx.json", "README.md"]), data=st.data())
def test_json_of_any_shape_signed_or_not_never_raises(signed, made, keys, name, data):
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    value = data.draw(
        st.recursive(leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner))
    )
    path, signature = signed / name, signed / "model.sig"
    was = [(p, p.read_bytes()) for p in (path, signature)]
    try:
        text = json.dumps(value) + "\n"
        path.write_text(f"---\n{text}---\n" if name == "README.md" else text)
        resigned(signed, keys[0])
        assert not verify(signed).ok
    finally:
        for p, content in was:
            p.write_bytes(content)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_record_with_any_one_value_replaced_never_raises(signed, keys, data):
    """Somewhere in hermitcrab.json, the bill or a claim something else is put, and all is signed anew."""
    name = data.draw(st.sampled_from(["hermitcrab.json", "ml-bom.cdx.json", "claims.jsonl"]))
    was = {p: (signed / p).read_bytes() for p in (name, "model.sig")}
    lines = was[name].split(b"\n")[:-1] if name == "claims.jsonl" else [was[name]]
    number = data.draw(st.integers(0, len(lines) - 1))
    value = open_envelope(lines[number]).statement if name == "claims.jsonl" else json.loads(lines[number])
    here = value
    while True:
        step = data.draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
        if not isinstance(here[step], dict | list) or not here[step] or data.draw(st.booleans()):
            break
        here = here[step]
    other = data.draw(st.sampled_from([None, 7, 1.5, "x", "", [], {}, [None], {"a": None}, [[]], True]))
    try:
        same = here[step] == other and type(here[step]) is type(other)
        here[step] = other
        if name == "claims.jsonl":
            lines[number] = sign_statement(value, load_private(keys[0].private))
            (signed / name).write_bytes(b"".join(line + b"\n" for line in lines))
        else:
            (signed / name).write_text(json.dumps(value))
        resigned(signed, keys[0])
        result = verify(signed, keys[0].public)
        json.dumps(result.as_json())
        if name == "hermitcrab.json" and not same:
            assert not result.ok
    finally:
        for p, content in was.items():
            (signed / p).write_bytes(content)


def edit_claim(package, number, change, key):
    """Change a statement of claims.jsonl and sign it with `key` (None: leave the old signature)."""
    path = package / "claims.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1]
    envelope = json.loads(lines[number - 1])
    claim = open_envelope(lines[number - 1]).statement
    change(claim)
    if key is None:
        envelope["payload"] = base64.b64encode(canonical_json(claim)).decode()
        lines[number - 1] = canonical_json(envelope)
    else:
        lines[number - 1] = sign_statement(claim, load_private(key.private))
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def test_an_edited_claim_is_named_by_its_line(package, keys):
    edit_claim(package, 3, lambda claim: claim["subject"].pop(), None)
    resigned(package, keys[0])
    told = messages(verify(package))
    assert "claims.jsonl line 3: edited: the claim is not what was signed" in told


def test_a_damaged_claim_is_no_evidence_against_the_card(package):
    def rename(claim):
        claim["predicate"]["buildDefinition"]["resolvedDependencies"][0]["name"] = "Uiny-Instruct"

    edit_claim(package, 1, rename, None)
    result = verify(package)
    assert "claims.jsonl line 1: edited" in messages(result)
    assert "README.md: names the base Tiny-Instruct, but the signed claims say Uiny-Instruct" in messages(result)
    assert not result.contradiction


def test_an_edited_card_of_an_unsigned_package_is_damage(package):
    (package / "model.sig").unlink()
    text = (package / "README.md").read_text()
    (package / "README.md").write_text(text.replace("base_model: Tiny", "base_model: Own"))
    result = verify(package)
    assert "README.md: the package statement and the folder differ" in messages(result)
    assert not result.contradiction


def test_a_claim_edited_and_signed_by_another_key(package, keys):
    edit_claim(package, 3, lambda claim: claim["subject"].pop(), keys[1])
    resigned(package, keys[0])
    told = messages(verify(package))
    assert f"claims.jsonl line 3: signed by another key than the package: {keys[1].fingerprint}" in told


def test_a_claim_edited_and_signed_by_the_same_key_breaks_the_chain(package, keys):
    edit_claim(package, 2, lambda claim: claim["subject"][0]["annotations"].update(size=1), keys[0])
    resigned(package, keys[0])
    told = messages(verify(package, keys[0].public))
    assert "line 3: tune names prepare" in told


@pytest.mark.parametrize(
    ("dropped", "message"), [(0, "has no claim before it"), (6, "no claim about the stage package")]
)
def test_a_dropped_claim_breaks_the_chain(package, keys, dropped, message):
    lines = (package / "claims.jsonl").read_bytes().splitlines(keepends=True)
    del lines[dropped]
    (package / "claims.jsonl").write_bytes(b"".join(lines))
    resigned(package, keys[0])
    assert message in messages(verify(package))


def test_a_base_whose_files_do_not_add_up_fails(package, made, keys):
    def grow(claim):
        claim["predicate"]["buildDefinition"]["resolvedDependencies"][1]["annotations"]["size"] += 1

    edit_claim(package, 1, grow, keys[0])
    resigned(package, keys[0])
    assert "the base's files do not add up to its digest" in messages(verify(package))


def dishonest(made, tmp_path, keys, stage, name, old, new):
    """A maker who changes a file of an artifact, relinks the later stages, and signs it all."""
    copies = {}
    for each in ORDER:
        shutil.copytree(made[each].path, tmp_path / "store" / each)
        copies[each] = Artifact(tmp_path / "store" / each, json.loads(json.dumps(made[each].manifest)))
    for each in (stage,) if isinstance(stage, str) else stage:
        rewritten(copies[each], name, old, new)
    for each in ORDER:
        copies[each].manifest["inputs"] = [{"stage": i, "digest": copies[i].digest} for i in INPUTS[each]]
    folder = laid_out(copies["package"], tmp_path / "package")
    sign_package(folder, claims_of(copies), keys[0].private)
    return verify(folder, keys[0].public)


def test_a_card_that_names_another_base_is_a_contradiction(made, tmp_path, keys):
    result = dishonest(
        made, tmp_path, keys, "package", "README.md", "base_model: Tiny-Instruct", "base_model: Own-Model"
    )
    (failure,) = result.failures
    assert failure.file == "README.md"
    assert failure.contradiction
    assert result.contradiction
    assert "names the base Own-Model, but the signed claims say Tiny-Instruct" in failure.message


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("README.md", "license: apache-2.0", "license: mit"),
        ("README.md", "- reviews", "- own-data"),
        ("README.md", "base_model: Tiny-Instruct\n", ""),
        ("hermitcrab.json", '"name": "Tiny-Instruct"', '"name": "Own-Model"'),
        ("hermitcrab.json", '"license": "CC0-1.0"', '"license": "MIT"'),
        ("hermitcrab.json", '"task": "text-generation"', '"task": "other"'),
        ("ml-bom.cdx.json", '"name": "Tiny-Instruct"', '"name": "Own-Model"'),
        ("ml-bom.cdx.json", '"expression": "CC0-1.0"', '"expression": "MIT"'),
    ],
)
def test_whatever_says_another_base_data_or_license_is_a_contradiction(made, tmp_path, keys, name, old, new):
    result = dishonest(made, tmp_path, keys, "package", name, old, new)
    assert result.contradiction
    assert {check.file for check in result.failures} == {name}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("README.md", "base_model: Tiny-Instruct", "base_model:\n- Tiny-Instruct"),
        ("README.md", "value: 0.8", "value: 0.9999"),
        ("README.md", "accuracy of derived 0.8 against", "accuracy of derived 0.9 against"),
        ("ml-bom.cdx.json", '"value": "0.8"', '"value": "1.0"'),
        ("ml-bom.cdx.json", '"architectureFamily": "llama"', '"architectureFamily": "ours"'),
        ("hermitcrab.json", '"template_digest": "sha256:', '"template_digest": "sha256:0'),
    ],
)
def test_card_bill_and_record_say_what_was_measured_to_the_letter(made, tmp_path, keys, file, old, new):
    """Signed anew by a dishonest maker, so that nothing but the claims speaks against it."""
    result = dishonest(made, tmp_path, keys, "package", file, old, new)
    assert file in {check.file for check in result.failures}, messages(result)


@pytest.mark.parametrize("named", [[], ["collect"], ["collect", "prepare"], ["collect", "prepare", "train", "train"]])
def test_a_claim_names_each_of_its_inputs_once(made, tmp_path, keys, named):
    statements = claims_of(made)
    number = ORDER.index("evaluate")
    inputs = statements[number]["predicate"]["buildDefinition"]["resolvedDependencies"]
    by_name = {entry["name"]: entry for entry in inputs}
    statements[number]["predicate"]["buildDefinition"]["resolvedDependencies"] = [by_name[n] for n in named]
    folder = laid_out(made["package"], tmp_path / "package")
    sign_package(folder, statements, keys[0].private)
    assert "evaluate names the inputs" in messages(verify(folder))


@pytest.mark.parametrize(("stage", "path", "value", "said"), [
    ("package", ("use",), "commercial ", "is none of commercial"),
    ("collect", ("base", "path"), "another.gguf", "the recipe asked for the base another.gguf"),
])  # fmt: skip
def test_what_was_asked_is_held_against_what_was_used(made, tmp_path, keys, stage, path, value, said):
    statements = claims_of(made)
    here = statements[ORDER.index(stage)]["predicate"]["buildDefinition"]["externalParameters"]
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = value
    folder = laid_out(made["package"], tmp_path / "package")
    sign_package(folder, statements, keys[0].private)
    assert said in messages(verify(folder))


def test_what_a_claim_tells_has_the_digest_of_its_file(made, tmp_path, keys):
    statements = claims_of(made)
    for entry in statements[ORDER.index("train")]["predicate"]["runDetails"]["byproducts"]:
        entry["digest"] = {"sha256": "0" * 64}
    folder = laid_out(made["package"], tmp_path / "package")
    sign_package(folder, statements, keys[0].private)
    assert "is of another file" in messages(verify(folder))


def test_weights_that_no_stage_trained_are_found(made, tmp_path, keys):
    result = dishonest(made, tmp_path, keys, "package", "config.json", "llama", "gpt")
    assert "config.json: not the file that was trained or evaluated" in messages(result)


def test_compressed_files_that_no_stage_compared_are_found(made, tmp_path, keys):
    result = dishonest(made, tmp_path, keys, "package", COMPRESSED["file"], b"general.license", b"general.licence")
    assert f"{COMPRESSED['file']}: not the file that was compressed" in messages(result)


def test_figures_of_a_compression_that_were_not_measured_are_found(made, tmp_path, keys):
    result = dishonest(made, tmp_path, keys, "package", "hermitcrab.json", '"flips": 3', '"flips": 0')
    assert "not those that the compress stage compared" in messages(result)


def test_trials_left_out_of_the_record_are_found(made, tmp_path, keys):
    result = dishonest(made, tmp_path, keys, "package", "hermitcrab.json", '"value": 0.7', '"value": 0.6')
    assert "the recorded trials are not those that the tune stage made" in messages(result)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda trials: [{**trials[0], "chosen": True}, {**trials[1], "chosen": False}], "not the one that the search chose"),
        (lambda trials: [{**trials[0], "value": 0.9}, trials[1]], "a trial that was not chosen has a better figure"),
        (lambda trials: [{**trials[0], "split": "test"}, trials[1]], "was not measured on validation rows"),
        (lambda trials: [trials[0], {**trials[1], "settings": {"train.learning_rate": 0.5}}], "the search chose train.learning_rate 0.5"),
        (lambda trials: [], None),
    ],
)  # fmt: skip
def test_a_search_that_was_not_as_it_is_told_is_found(tmp_path, keys, change, what):
    store = Store(tmp_path / "store")
    made = packaged(store, chain(store, tmp_path, trials=change))
    folder = laid_out(made["package"], tmp_path / "package")
    sign_package(folder, claims_of(made), keys[0].private)
    result = verify(folder)
    assert result.ok == (what is None)
    assert (what or "") in messages(result)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (b"Tiny-Instruct", b"Tiny-Obstruct", "names the base Tiny-Obstruct, but the signed claims say Tiny-Instruct"),
        (b"Apache-2.0", b"Apache-1.1", "names the license Apache-1.1"),
    ],
)
def test_a_compressed_file_that_names_another_base_or_license_is_a_contradiction(made, tmp_path, keys, old, new, what):
    result = dishonest(made, tmp_path, keys, ("compress", "package"), COMPRESSED["file"], old, new)
    assert result.contradiction
    assert what in messages(result)


def test_metrics_that_were_not_measured_are_found(made, tmp_path, keys):
    result = dishonest(made, tmp_path, keys, "package", "metrics.json", '"value": 0.8', '"value": 0.9')
    assert "metrics.json: not the file that was trained or evaluated" in messages(result)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"mean_kl": 2.5e-07', '"mean_kl": 0.5', "the recorded mean_kl is 0.5, expected at most 0.001"),
        ('"top1_agreement": 1.0', '"top1_agreement": 0.5', "top1_agreement is 0.5, expected at least 0.95"),
        ('"ok": true', '"ok": false', "says itself that it failed"),
        ('"max_abs_logit_difference": 0.0625', '"max_abs_logit_difference": 0.0', "not the one that the train stage"),
    ],
)
def test_parity_must_lie_within_its_tolerance_and_be_what_was_found(made, tmp_path, keys, old, new, message):
    assert message in messages(dishonest(made, tmp_path, keys, "package", "hermitcrab.json", old, new))


def test_parity_out_of_tolerance_fails_even_where_the_train_stage_said_so(tmp_path, keys):
    store = Store(tmp_path / "s")
    made = packaged(store, chain(store, tmp_path, parity={**PARITY, "mean_kl": 0.5}))
    folder = laid_out(made["package"], tmp_path / "package")
    sign_package(folder, claims_of(made), keys[0].private)
    assert "the recorded mean_kl is 0.5" in messages(verify(folder))


def test_license_flow_is_worked_out_afresh(package, made, keys):
    def forbid(claim):
        for entry in claim["predicate"]["buildDefinition"]["resolvedDependencies"]:
            if entry["annotations"]["role"] == "data":
                entry["annotations"]["license"] = "CC-BY-NC-4.0"

    edit_claim(package, 1, forbid, keys[0])
    resigned(package, keys[0])
    assert "CC-BY-NC-4.0 forbids commercial use" in messages(verify(package))


def test_a_signature_that_ignores_files_is_refused(package, keys):
    from model_signing import hashing, signing

    (package / "model.sig").unlink()
    config = hashing.Config().set_ignored_paths(paths=["model.sig", "config.json"], ignore_git_paths=False)
    signer = signing.Config().use_elliptic_key_signer(private_key=str(keys[0].private)).set_hashing_config(config)
    signer.sign(package, package / "model.sig")
    signed = bundle.read_bundle((package / "model.sig").read_bytes())
    (package / "model.sig").write_bytes(signed.as_bytes())
    assert "does not cover every file" in messages(verify(package))


def test_names_in_the_signed_list_are_never_opened(package, keys):
    signed = bundle.read_bundle((package / "model.sig").read_bytes())
    climbing = bundle.Bundle(signed.payload.replace(b"config.json", b"../../etc/x"), signed.signature, signed.hint)
    (package / "model.sig").write_bytes(climbing.as_bytes())
    told = messages(verify(package))
    assert "../../etc/x" in told
    assert "the signature does not hold" in told


def test_a_changed_size_in_the_record_is_found(made, tmp_path, keys):
    digest = made["collect"].read("base.json")["digest"]
    result = dishonest(made, tmp_path, keys, "package", "hermitcrab.json", digest, digest_json("other"))
    assert result.contradiction


def test_what_a_hub_puts_beside_a_package_is_told_and_left_out(package, keys):
    (package / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (package / ".cache" / "huggingface" / "download" / "empty").mkdir(parents=True)
    (package / ".cache" / "huggingface" / "download" / "README.md.metadata").write_text("x")
    result = verify(package, keys[0].public)
    assert result.ok, messages(result)
    assert result.authenticated
    assert any("2 such files were put here by a hub's download" in check.message for check in result.checks)
    (package / ".cache" / "more").write_text("x")
    (package / "adapter" / ".gitattributes").write_text("x")
    told = messages(verify(package))
    assert ".cache/more: extra" in told
    assert "adapter/.gitattributes: extra" in told


def test_what_a_hub_would_put_there_is_checked_where_it_was_signed(package, keys):
    (package / ".gitattributes").write_text("as signed")
    resigned(package, keys[0])
    assert not any(check.check == "hub" for check in verify(package).checks)
    (package / ".gitattributes").write_text("changed")
    assert ".gitattributes: changed after signing" in messages(verify(package))
    (package / ".gitattributes").unlink()
    assert ".gitattributes: missing" in messages(verify(package))
    (package / ".gitattributes").symlink_to("README.md")
    assert ".gitattributes: a symbolic link" in messages(verify(package))
