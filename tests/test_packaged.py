"""What leaves for somewhere else is a package that was verified, of files alone, under names that arrive as they are."""

from __future__ import annotations

import contextlib
import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.lineage.verify import verify
from hermitcrab.packaged import check_name, find_package
from hermitcrab.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "m"
    made.mkdir()
    (made / "hermitcrab.json").write_text(json.dumps({"name": "x", "task": "text-generation", "license": "MIT"}))
    return made


def found(folder: Path) -> list[str]:
    return [file.path for file in find_package(str(folder), Store(folder / "no-store"), unverified=True).files]


def test_nothing_is_used_that_nothing_vouches_for(folder):
    with pytest.raises(HermitcrabError, match="unsigned"):
        find_package(str(folder), Store(folder / "no-store"))
    (folder / "hermitcrab.json").unlink()
    with pytest.raises(UsageError, match="is no package"):
        find_package(str(folder), Store(folder / "no-store"))
    with pytest.raises(UsageError, match="no such folder, file or run"):
        find_package(str(folder / "nothing"), Store(folder / "no-store"))


@pytest.mark.parametrize(
    "name", ["a\nb", "a\x1b[2Jb", "\u202etxt.exe", "a\\b", "con:", "a*", ".git/config", "x/.GIT/hooks/y", "\udcff"]
)
def test_a_name_that_would_not_arrive_is_refused_whoever_signed_it(name, folder):
    with pytest.raises(HermitcrabError, match="sent"):
        check_name(name)
    path = os.fsencode(folder) + b"/" + name.encode("utf-8", "surrogateescape")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(os.fsdecode(path)).write_text("x")
    with pytest.raises(HermitcrabError, match="sent"):
        found(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "gguf/a b-Q8_0.gguf", "寄居蟹.md", ".gitattributes2", "a" * 255])
def test_ordinary_names_pass(name):
    check_name(name)


@given(st.text(min_size=1, max_size=30))
def test_a_name_that_passes_holds_no_control_character_and_climbs_nowhere(name):
    with contextlib.suppress(HermitcrabError):
        check_name(name)
        assert not any(unicodedata.category(c) == "Cc" for c in name)
        assert not {"", ".", ".."} & set(name.split("/"))


def test_two_names_that_are_one_elsewhere_are_refused(folder):
    (folder / "README.md").write_text("a")
    (folder / "readme.md").write_text("b")
    with pytest.raises(HermitcrabError, match="are one file on some systems"):
        found(folder)


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("/etc/passwd"), lambda p: p.symlink_to("/etc"), os.mkfifo])
def test_what_is_no_file_is_never_opened(make, folder):
    make(folder / "inside")
    with pytest.raises(HermitcrabError, match="a link or no regular file"):
        found(folder)


def test_folders_a_thousand_deep_are_no_reason_to_fall_over(folder):
    deep = "/".join(["d"] * 1100)
    for depth in range(1, 1101):
        os.mkdir(f"{folder}/{'/'.join(['d'] * depth)}")
    (folder / deep / "x").write_text("x")
    assert f"{deep}/x" in found(folder)
    assert not verify(folder).ok
    (folder / deep / "x").unlink()
    os.removedirs(folder / deep)  # or whoever clears up after the tests would fall over


def test_what_a_hub_put_there_does_not_go_along(folder):
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "x").write_text("x")
    (folder / ".gitattributes").write_text("x")
    assert found(folder) == ["hermitcrab.json"]
