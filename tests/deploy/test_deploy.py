"""`crab export --to docker | k8s`: files that a linter and the published schemas find nothing wrong with, whatever a package is called."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import crab

from hermitcrab.cli import VERBS, parser
from hermitcrab.deploy import Options, docker, k8s
from hermitcrab.deploy.serving import DRAIN, KEY_VARIABLE, LABEL, command, image_of, memory, slug
from hermitcrab.errors import UsageError
from hermitcrab.packaged import File, Packaged

KUBERNETES = ("1.30", "1.34", "1.37")
HOSTILE = [
    'a"b', "a\nprivileged: true", "$(reboot)", "${HOME}", "`id`", "'; rm -rf /", "a: b", "- x", "&a *a", "!!python/object:os.system", "# c",
    "{{ .Values }}", "a\x00b", "\u202egnp", "寄居蟹", "../../etc", "yes", "1e3", "~",
    "", " ", "-", "0", "a" * 500, "a\\\nRUN id", "%s", "|\n  x", "\ud800",
]  # fmt: skip
ODD_TEXT = st.text(max_size=40) | st.sampled_from(HOSTILE)


def named(name: str, license_id: str = "MIT") -> Packaged:
    record = {"name": name, "task": "text-generation", "license": license_id}
    return Packaged(Path("x"), record, [File("model.safetensors", "0" * 64, 10**9)], "intact")


def shape(value: Any) -> Any:
    """A value with every text in it left out: what a name must not change."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else type(value).__name__


def longest_drain() -> float:
    """Seconds that `crab serve` may take to end when it is told to."""
    options = {names[0]: more for names, more in VERBS["serve"][3]}
    return options.get("--drain", {"default": 5.0})["default"]


def documents(data: bytes) -> list[Any]:
    return list(yaml.safe_load_all(data))


@pytest.fixture(scope="module")
def compose_schema() -> dict[str, Any]:
    pytest.importorskip("check_jsonschema")
    found = files("check_jsonschema.builtin_schemas.vendor").joinpath("compose-spec.json").read_text()
    return json.loads(found)


def hadolint() -> str:
    found = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("hadolint is not installed here")
    return found


def write_nameless(folder: Path, name: str, license_id: str = "MIT", task: str = "text-generation") -> Path:
    """A folder with weights whose record says what a stranger likes; nothing vouches for it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (folder / "hermitcrab.json").write_text(json.dumps({"name": name, "task": task, "license": license_id}))
    return folder


# Docker


def test_the_files_for_docker_are_written_and_told(package, key, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(KEY_VARIABLE, "very-secret-key")
    status, out, _ = crab("export", str(package), "--to", "docker", "--out", str(tmp_path / "d"), "--key", str(key.public),
                          "--json", capsys=capsys)  # fmt: skip
    told = json.loads(out)
    assert status == 0
    assert told["verified"] is True
    assert told["files"] == [".dockerignore", "Dockerfile", "compose.yaml", "requirements.txt", "signer.pub.pem"]
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == told["files"]
    assert (tmp_path / "d" / "signer.pub.pem").read_bytes() == key.public.read_bytes()
    for file in (tmp_path / "d").iterdir():
        assert "very-secret-key" not in file.read_text()
        assert str(package) not in file.read_text()
    assert any("docker compose up" in note for note in told["notes"])


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path):
    file = tmp_path / "Dockerfile"
    file.write_bytes(docker.make(named("x"), Options()).files["Dockerfile"])
    done = subprocess.run([hadolint(), "--failure-threshold", "style", str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    file.write_text(file.read_text().replace("FROM python:", "FROM python:latest\n#"))  # it does look
    assert "DL3007" in subprocess.run([hadolint(), str(file)], capture_output=True, text=True).stdout


def test_the_image_runs_as_a_number_and_copies_no_model_and_no_key():
    text = docker.make(named("x"), Options()).files["Dockerfile"].decode()
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-slim-bookworm$", text, re.M)
    assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", text, re.M)
    assert all(word.startswith(("requirements.txt", "hermitcrab-")) for word in re.findall(r"^COPY (\S+)", text, re.M))
    check = re.search(r"^HEALTHCHECK .*?CMD (\[.*?\])$", text, re.M | re.S)
    assert "/health/live" in json.loads(check[1])[2]
    ignored = docker.make(named("x"), Options()).files[".dockerignore"].decode().splitlines()
    assert "*" in ignored


def test_requirements_pin_all_that_the_server_needs_and_nothing_twice():
    lines = docker.make(named("x"), Options()).files["requirements.txt"].decode().splitlines()
    names = [line.partition("==")[0] for line in lines]
    assert {"uvicorn", "starlette", "safetensors", "numpy"} <= set(names)
    assert "hermitcrab" not in names
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9A-Za-z.!]*", line) for line in lines)


@pytest.mark.parametrize(
    "options", [Options(), Options(image="registry.internal:5000/team/crab:2", signer=b"-----BEGIN")]
)
def test_the_compose_file_follows_the_specification(options, compose_schema):
    found = yaml.safe_load(docker.make(named("x"), options).files["compose.yaml"])
    jsonschema.validate(found, compose_schema)
    service = found["services"]["serve"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert not service["user"].startswith("0")
    assert all(mount["read_only"] for mount in service["volumes"])
    assert service["ports"][0].startswith("127.0.0.1:")
    assert int(service["stop_grace_period"].removesuffix("s")) >= DRAIN >= longest_drain()
    assert ("--key" in service["command"]) is (options.signer is not None)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**found, "servces": {}}, compose_schema)


@settings(max_examples=80, deadline=None)
@given(name=ODD_TEXT, license_id=ODD_TEXT)
@example(name="$x", license_id="${Y:-z}")
def test_no_name_changes_the_structure_of_the_files_for_docker(name, license_id):
    plain, made = (
        docker.make(one, Options()).files for one in (named("x", "MIT"), named(name or "x", license_id or "MIT"))
    )
    assert made["Dockerfile"] == plain["Dockerfile"]
    assert made[".dockerignore"] == plain[".dockerignore"]
    ours, theirs = yaml.safe_load(plain["compose.yaml"]), yaml.safe_load(made["compose.yaml"])
    assert shape(ours) == shape(theirs)
    assert LABEL.fullmatch(theirs["name"])
    labels = theirs["services"]["serve"].pop("labels")
    ours["services"]["serve"].pop("labels")
    assert ours["services"] == theirs["services"]
    # Compose reads `$$` as `$`; a `$` alone would be a variable.
    assert all(re.fullmatch(r"([^$]|\$\$)*", value) for value in labels.values())


@pytest.mark.parametrize("package", [named("x"), Packaged(Path("x"), {}, named("x").files, None)])
def test_the_command_of_the_container_is_one_that_crab_takes(package):
    for signer in (False, True):
        asked = parser().parse_args(command(package, signer))
        assert asked.host == "0.0.0.0"
        assert asked.unverified is (package.verified is None)
        assert (asked.key is not None) is signer


# Kubernetes


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize(
    "options", [Options(), Options(replicas=2, autoscale=5, signer=b"-----BEGIN", secret="s", volume="v")]
)
def test_every_manifest_follows_the_schema_of_kubernetes(version, options):
    validate = pytest.importorskip("kubernetes_validate").validate
    found = documents(k8s.make(named("x"), options).files["manifests.yaml"])
    kinds = [document["kind"] for document in found]
    assert kinds[-4:] == ["Service", "PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler"] or kinds[-3:] == [
        "Service", "PodDisruptionBudget", "NetworkPolicy",
    ]  # fmt: skip
    for document in found:
        validate(document, version, strict=True)
    with pytest.raises(Exception, match="replics"):
        validate({**found[-3 if options.autoscale is None else -4], "replics": 1}, version, strict=True)


def deployment_of(options: Options) -> dict[str, Any]:
    found = documents(k8s.make(named("x"), options).files["manifests.yaml"])
    return next(document for document in found if document["kind"] == "Deployment")


def test_a_pod_is_nobody_writes_nothing_and_is_given_time_to_end():
    pod = deployment_of(Options())["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    leaving = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= leaving + longest_drain()
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/health/ready", "readiness": "/health/ready", "liveness": "/health/live"}
    package = next(volume for volume in pod["volumes"] if volume["name"] == "package")
    assert package["persistentVolumeClaim"]["readOnly"] is True
    assert {mount["name"]: mount.get("readOnly", False) for mount in container["volumeMounts"]} == {
        "package": True,
        "tmp": False,
    }


def test_the_secret_is_named_and_never_written():
    (container,) = deployment_of(Options(secret="clients"))["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [
        {"name": KEY_VARIABLE, "valueFrom": {"secretKeyRef": {"name": "clients", "key": "api-key"}}}
    ]
    found = documents(k8s.make(named("x"), Options()).files["manifests.yaml"])
    assert all(document["kind"] != "Secret" for document in found)


def test_memory_grows_with_the_weights_and_the_start_is_given_longer():
    small, large = named("x"), named("x")
    object.__setattr__(large, "files", [File("model.safetensors", "0" * 64, 10**11)])
    assert memory(small) < memory(large)
    assert memory(small) >= 2 * 10**9
    probes = [
        documents(k8s.make(package, Options()).files["manifests.yaml"])[0]["spec"]["template"]["spec"]["containers"][0][
            "startupProbe"
        ]
        for package in (small, large)
    ]
    assert probes[0]["failureThreshold"] < probes[1]["failureThreshold"]
    object.__setattr__(small, "files", [File("README.md", "0" * 64, 5)])
    with pytest.raises(UsageError, match="no weights"):
        memory(small)


@settings(max_examples=80, deadline=None)
@given(name=ODD_TEXT, license_id=ODD_TEXT)
def test_no_name_changes_the_structure_of_manifests(name, license_id):
    plain, made = (
        documents(k8s.make(one, Options(autoscale=2)).files["manifests.yaml"])
        for one in (named("x", "MIT"), named(name or "x", license_id or "MIT"))
    )
    assert shape(plain) == shape(made)
    called = made[0]["metadata"]["name"]
    assert LABEL.fullmatch(called)
    assert called[0].isalpha()
    for document in made:
        template = document["spec"].get("template")
        if template:
            template["metadata"].pop("annotations")
    for document in plain:
        template = document["spec"].get("template")
        if template:
            template["metadata"].pop("annotations")
    assert json.dumps(made).replace(called, "x") == json.dumps(plain) or called in json.dumps(plain)


@given(st.text(max_size=60))
def test_a_slug_is_an_identifier_and_two_names_have_two(name):
    assert LABEL.fullmatch(slug(name))
    assert slug(name)[0].isalpha()
    assert len(slug(name)) <= 47
    if slug(name) != name:
        assert slug(name) != slug(name + "!")


# What is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "dcker"], "did you mean `docker`?"),
        (["--to", "docker", "--image", "crab"], "NAME:TAG"),
        (["--to", "docker", "--image", "crab:latest"], "no `latest`"),
        (["--to", "docker", "--image", "crab:1\nUSER 0"], "NAME:TAG"),
        (["--to", "k8s", "--secret", "A b"], "--secret: expected a name of Kubernetes"),
        (["--to", "k8s", "--volume", "x\ny: 1"], "--volume: expected a name of Kubernetes"),
        (["--to", "k8s", "--replicas", "3", "--autoscale", "3"], "expected more than --replicas 3"),
        (["--to", "modelfile", "--type", "Q9"], "GGUF files of the types Q8_0"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_leaves_nothing(arguments, said, package, tmp_path, capsys):
    status, out, err = crab("export", str(package), *arguments, "--out", str(tmp_path / "d"), capsys=capsys)
    assert (status, out) == (2, "")
    assert said in err
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("image", ["a:1", "host.example:5000/a/b_c:v1.2", "a@sha256:" + "0" * 64])
def test_names_of_images(image):
    assert image_of(image) == image


def test_a_package_that_was_changed_is_not_deployed_but_aloud(package, tmp_path, capsys):
    copy = shutil.copytree(package, tmp_path / "p")
    (copy / "config.json").write_text("{}")
    status, _, err = crab("export", str(copy), "--to", "k8s", "--out", str(tmp_path / "d"), capsys=capsys)
    assert status == 1
    assert "config.json: changed after signing" in err
    arguments = ["--to", "k8s", "--out", str(tmp_path / "d"), "--unverified", "--json"]
    status, out, err = crab("export", str(copy), *arguments, capsys=capsys)
    assert status == 0
    assert "warning" in err
    assert json.loads(out)["verified"] is False
    assert "--unverified" in (tmp_path / "d" / "manifests.yaml").read_text()


def test_a_folder_that_is_no_package_is_refused_and_a_link_in_it_always(tmp_path, capsys):
    folder = write_nameless(tmp_path / "m", "x")
    (folder / "hermitcrab.json").unlink()
    status, _, err = crab("export", str(folder), "--to", "k8s", "--out", str(tmp_path / "d"), capsys=capsys)
    assert status == 2
    assert "is no package" in err
    (folder / "passwd").symlink_to("/etc/passwd")
    status, _, err = crab(
        "export", str(folder), "--to", "k8s", "--out", str(tmp_path / "d"), "--unverified", capsys=capsys
    )
    assert status == 1
    assert "a link" in err
