import bz2
import dataclasses
import gzip
import io
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hermitcrab import debs, packages
from hermitcrab.debs import DEB
from hermitcrab.digest import digest_bytes
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.references import cache_folder, fetch, resolve
from hermitcrab.store import Store

CONTENT = b"text,label\ngood,1\n" * 50
SHA256 = digest_bytes(CONTENT)
PATH = "usr/share/crab-rows/rows.csv"
REFERENCE = f"deb:crab-rows=1:1.0~rc1-2/{PATH}"
VERSION = "1:1.0~rc1-2"


def zstd(data: bytes) -> bytes:
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".xz": lzma.compress, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstd, "": bytes,
}  # fmt: skip


def entry(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, target
    return info, data


FILES = [
    entry("./usr/share/crab-rows", kind=tarfile.DIRTYPE),
    entry("./usr/share/crab-rows/before.csv", b"x" * 3000),
    entry(f"./{PATH}", CONTENT),
    entry("./usr/share/crab-rows/" + "long-" * 30 + "name", b"long"),
]


def build_tar(*entries: tuple[tarfile.TarInfo, bytes], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def build_ar(*members: tuple[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, data in members:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return out


def build_deb(ending: str = ".xz", data: bytes | None = None) -> bytes:
    """A package whose maintainer scripts would leave a mark if they ever ran."""
    data = build_tar(*FILES) if data is None else data
    control = build_tar(
        entry("./control", f"Package: crab-rows\nVersion: {VERSION}\n".encode()), entry("./preinst", b"#!/bin/false\n")
    )
    return build_ar(
        ("debian-binary", b"2.0\n"),
        ("control.tar.gz", gzip.compress(control)),
        (f"data.tar{ending}", PACK[ending](data)),
    )


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Store(tmp_path / "store")


def take(content: bytes, store: Store, reference: str = REFERENCE, sha256: str = SHA256) -> Path:
    """Fetch from a package that is already here."""

    def download(_: packages.Member, folder: Path) -> Path:
        (folder / "package.deb").write_bytes(content)
        return folder / "package.deb"

    return dataclasses.replace(DEB, download=download).fetch(reference, sha256, store)


def refused(content: bytes, store: Store, reference: str = REFERENCE, sha256: str = SHA256) -> str:
    with pytest.raises(HermitcrabError) as caught:
        take(content, store, reference, sha256)
    return said(caught)


def said(caught: pytest.ExceptionInfo[HermitcrabError]) -> str:
    assert str(caught.value).isprintable()
    assert not [p for p in cache_folder("deb").rglob("*") if p.is_file()]
    return str(caught.value)


# Reading a package


@pytest.mark.parametrize("ending", PACK)
def test_one_file_comes_out_however_it_is_packed(ending: str, store: Store, tmp_path: Path) -> None:
    path = take(build_deb(ending), store)
    assert path == tmp_path / "cache/hermitcrab/deb" / f"crab-rows-{VERSION}" / SHA256[7:23] / "rows.csv"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["rows.csv"]


def test_names_may_be_long_or_without_the_leading_dot(store: Store) -> None:
    long = FILES[-1][0].name.removeprefix("./")
    assert take(build_deb(), store, f"deb:crab-rows=1/{long}", digest_bytes(b"long")).read_bytes() == b"long"
    plain = build_deb(data=build_tar(entry(PATH, CONTENT), tar_format=tarfile.USTAR_FORMAT))
    assert take(plain, store).read_bytes() == CONTENT


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not here")
@pytest.mark.parametrize("packed", ["xz", "gzip", "none"])
def test_a_package_of_dpkg_deb_is_read(packed: str, store: Store, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / PATH).parent.mkdir(parents=True)
    (root / PATH).write_bytes(CONTENT)
    (root / "DEBIAN").mkdir(mode=0o755)
    (root / "DEBIAN" / "control").write_text(
        f"Package: crab-rows\nVersion: {VERSION}\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: rows\n"
    )
    made = tmp_path / "made.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", f"-Z{packed}", "-b", root, made], check=True, capture_output=True)
    assert take(made.read_bytes(), store).read_bytes() == CONTENT


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_devices_and_folders_are_refused(kind: bytes, store: Store) -> None:
    data = build_tar(entry(f"./{PATH}", kind=kind, target="/etc/passwd"), entry(f"./{PATH}", CONTENT))
    assert "a link or a device in the Debian package" in refused(build_deb(data=data), store)


def test_only_exactly_that_path_is_taken(store: Store) -> None:
    for name in (f"/{PATH}", f"../{PATH}", f"./x/../{PATH}", f"././{PATH}", f"{PATH}\x1b[31m\n"):
        assert "has no file" in refused(build_deb(data=build_tar(entry(name, CONTENT))), store), name
    assert f"did you mean `{PATH}`" in refused(build_deb(), store, REFERENCE.replace("rows.csv", "row.csv"))


def test_other_bytes_than_the_recipe_means_are_refused(store: Store) -> None:
    other = digest_bytes(b"")
    assert f"has {SHA256}, expected {other}" in refused(build_deb(), store, sha256=other)


@pytest.mark.parametrize("ending", [".xz", ".gz", ".bz2", ".zst"])
def test_bombs_are_refused(ending: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "BOMB_FROM", 1 << 18)
    monkeypatch.setattr(packages, "BOMB_RATIO", 20)
    zeros = b"\0" * (1 << 20)
    asked = build_deb(ending, build_tar(entry(f"./{PATH}", zeros)))
    assert "would unpack to 1,048,576; refused (a decompression bomb)" in refused(asked, store)
    before = build_deb(ending, build_tar(entry("./zeros", zeros), entry(f"./{PATH}", CONTENT)))
    assert "refused (a decompression bomb)" in refused(before, store)


def header_of(size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar header that declares `size`, as it stands there, with a right checksum."""
    header = bytearray(entry("./x", kind=kind)[0].tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (header_of(b"\xff" * 12), "declares -1 bytes"),
        (header_of(b"\x80" + b"\xff" * 11), "data.tar ends early"),
        (header_of(b"77777777777\0", tarfile.GNUTYPE_LONGNAME), "declares 8,589,934,591 bytes"),
        (header_of(b"00000000000\0", tarfile.XHDTYPE), "type b'x'"),
        (header_of(b"00000000000\0", tarfile.GNUTYPE_SPARSE), "type b'S'"),
        (header_of(b"00000000000\0", tarfile.CONTTYPE), "type b'7'"),
        (header_of(b"00000000000\0", tarfile.GNUTYPE_LONGNAME) * 3000, "damaged"),
        (b"\1" * 512, "in data.tar: invalid header"),
    ],
)
def test_headers_that_lie_are_refused_at_once(header: bytes, says: str, store: Store) -> None:
    after = build_tar(*FILES)
    for data in (header + after, build_tar(entry("./first", b"1"))[:1024] + header + after):
        assert says in refused(build_deb(data=data), store)


def test_a_file_that_wants_more_than_the_disk_has_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    assert f"needs {len(CONTENT):,} bytes" in refused(build_deb(), store)


def test_an_xz_stream_may_not_ask_for_all_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debs, "XZ_MEMORY", 1 << 20)
    assert "emory usage limit" in refused(build_deb(), store)


DATA = ("data.tar", build_tar(*FILES))
BINARY = ("debian-binary", b"2.0\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no ar archive"),
        (b"<html>not found</html>", "no ar archive"),
        (b"!<arch>\n", "0 members data.tar"),
        (b"!<arch>\nshort", "no ar header at byte 8"),
        (build_ar(DATA), "does not begin with `debian-binary`"),
        (build_ar(("debian-binary", b"3.0\n"), DATA), "does not begin with `debian-binary`"),
        (build_ar(BINARY), "0 members data.tar"),
        (build_ar(BINARY, DATA, DATA), "2 members data.tar"),
        (build_ar(BINARY, ("data.tar.lzma", b"")), "packed as 'lzma'"),
        (build_ar(BINARY, ("data.tar.xz", b"")), "xz stream ends early"),
        (build_ar(BINARY, ("data.tar", b"")), "ends early"),
        (build_ar(BINARY, ("data.tar.zst", b"no zstd at all")), "ZSTD"),
        (build_ar(BINARY, DATA).replace(b"4         `", b"-4        `"), "no ar header"),
        (build_ar(BINARY, DATA)[:-1], "declares 10,240 bytes and 10,239 follow"),
        (build_ar(BINARY, DATA) + b"!", "no ar header"),
    ],
)
def test_what_is_no_debian_package_says_so(content: bytes, says: str, store: Store) -> None:
    message = refused(content, store)
    assert "the Debian package is damaged or no Debian package" in message
    assert says in message


DEBS = {ending: build_deb(ending) for ending in PACK}


@settings(max_examples=300, deadline=None)
@given(
    ending=st.sampled_from(sorted(PACK)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3),
    keep=st.floats(0, 1) | st.just(1.0),
)
@example(ending="", flips=[], keep=0.5)
def test_damage_gives_the_right_file_or_one_sentence(ending: str, flips: list[tuple[float, int]], keep: float) -> None:
    content = bytearray(DEBS[ending])
    for at, bits in flips:
        content[int(at * len(content))] ^= bits
    member = DEB.parse(REFERENCE, SHA256)
    with tempfile.TemporaryDirectory() as folder:
        package, out = Path(folder) / "package.deb", Path(folder) / "out"
        package.write_bytes(content[: int(keep * len(content))])
        message = ""
        try:
            if DEB.unpack(member, package, out) == SHA256:  # else `fetch` refuses it
                assert out.read_bytes() == CONTENT
        except HermitcrabError as error:
            message = str(error)
        assert message.isprintable()


# References


@pytest.mark.parametrize(
    "reference",
    [
        "deb:crab-rows/x", "deb:crab-rows=1.0", "deb:crab-rows==1.0/x", "deb:-o=1/x", "deb:crab-rows=1.0/../x",
        "deb:crab-rows=1.0//etc/x", "deb:crab-rows=1.0/./x", "deb:crab-rows=1.0/a\\b", "deb:crab-rows=*/x",
        "deb:crab-rows=1.0 -y/x", "deb:crab-rows:amd64=1.0/x", "deb:Crab=1.0/x", "deb:crab-rows=1.0/x\x1b",
    ],
)  # fmt: skip
def test_malformed_references_are_refused(reference: str, store: Store) -> None:
    with pytest.raises(UsageError, match=r"expected deb:NAME|no path of a file"):
        resolve(reference, SHA256, store)


def test_the_digest_is_required(store: Store) -> None:
    with pytest.raises(UsageError, match="needs sha256"):
        resolve(REFERENCE, None, store)


def test_without_apt_a_path_works(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HermitcrabError, match=r"needs apt-get.*a path to the unpacked file works too") as caught:
        fetch(resolve(REFERENCE, SHA256, store), store)
    said(caught)


# apt itself, with a registry (a folder) of the test's own

with_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not here")


@pytest.fixture
def registry(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "registry"
    folder.mkdir()
    root = tmp_path / "apt"
    for name in ("etc/apt/apt.conf.d", "etc/apt/preferences.d", "lists/partial", "cache/archives/partial"):
        (root / name).mkdir(parents=True)
    (root / "status").touch()
    settings = {
        "Dir::Etc": root / "etc/apt", "Dir::State": root, "Dir::State::status": root / "status", "Dir::Cache": root / "cache",
        "Acquire::Retries": 0, "Acquire::http::Proxy": "DIRECT", "Acquire::Languages": "none",
    }  # fmt: skip
    (root / "apt.conf").write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))
    (root / "etc/apt/sources.list").write_text(f"deb [trusted=yes] file:{folder} ./\n")
    monkeypatch.setenv("APT_CONFIG", str(root / "apt.conf"))
    publish(folder)
    return folder


def publish(folder: Path, name: str = "crab-rows") -> None:
    deb = build_deb()  # once: gzip writes the time into what it packs
    (folder / "rows.deb").write_bytes(deb)
    (folder / "Packages").write_text(
        f"Package: {name}\nVersion: {VERSION}\nArchitecture: all\nMaintainer: a <a@b.c>\nFilename: ./rows.deb\n"
        f"Size: {len(deb)}\nSHA256: {digest_bytes(deb)[7:]}\nDescription: rows\n\n"
    )
    subprocess.run(["apt-get", "update"], check=True, capture_output=True)


@with_apt
def test_apt_fetches_once_and_a_damaged_copy_is_replaced(store: Store, registry: Path) -> None:
    resolved = resolve(REFERENCE, SHA256, store)
    assert (resolved.identity, resolved.revision, resolved.path, resolved.kind) == (SHA256, VERSION, None, "deb")
    left = DEB.parse(REFERENCE, SHA256).cached().parent / ".fetch-killed"
    left.mkdir(parents=True)
    path = fetch(resolved, store)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["rows.csv"]
    assert resolve(REFERENCE, SHA256, store).path == path
    (registry / "rows.deb").rename(registry / "away.deb")
    assert fetch(resolve(REFERENCE, SHA256, store), store) == path
    path.write_bytes(b"damaged")
    (registry / "away.deb").rename(registry / "rows.deb")
    assert fetch(resolve(REFERENCE, SHA256, store), store).read_bytes() == CONTENT


def fails(reference: str, store: Store) -> str:
    with pytest.raises(HermitcrabError) as caught:
        fetch(resolve(reference, SHA256, store), store)
    return said(caught)


@with_apt
def test_failures_say_what_apt_knows(store: Store, registry: Path) -> None:
    unknown = fails(REFERENCE.replace(VERSION, "2.0"), store)
    assert f"apt knows no crab-rows=2.0; it has {VERSION}; `apt-get update` may be needed" in unknown
    assert "apt knows no package crab-absent; check the name, or run" in fails("deb:crab-absent=1/x", store)
    like = REFERENCE.replace("crab-rows", "crab.rows")  # apt takes it for an expression, and finds crab-rows
    assert "apt knows no package crab.rows" in fails(like, store)
    (registry / "rows.deb").write_bytes(b"other bytes than the list says")
    assert "apt-get could not fetch crab-rows" in fails(REFERENCE, store)


@with_apt
def test_no_network_is_said(store: Store, registry: Path) -> None:
    sources = Path(os.environ["APT_CONFIG"]).parent / "etc/apt/sources.list"
    sources.write_text("deb [trusted=yes] http://127.0.0.1:9 ./\n")
    lists = next(sources.parents[2].glob("lists/*Packages"))
    lists.rename(lists.with_name("127.0.0.1:9_._Packages"))
    assert "the package registry cannot be reached" in fails(REFERENCE, store)


def test_a_real_package_of_a_real_registry(store: Store) -> None:
    reference = (
        "deb:dataset-fashion-mnist=0.0~git20200523.55506a9-1/usr/share/datasets/fashion-mnist/t10k-labels-idx1-ubyte.gz"
    )
    sha256 = "sha256:8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"
    try:
        path = fetch(resolve(reference, sha256, store), store)
    except HermitcrabError as error:
        if re.search("needs apt-get|cannot be reached|apt knows no", str(error)):
            pytest.skip(f"no registry of Debian packages within reach: {error}")
        raise
    labels = gzip.decompress(path.read_bytes())
    assert len(labels) == 8 + 10_000
