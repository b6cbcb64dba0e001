import gzip

import pytest

from hermitcrab.data import files
from hermitcrab.data.files import kind_of, open_data
from hermitcrab.errors import HermitcrabError, UsageError


def read(path):
    with open_data(path, path.name) as stream:
        return stream.read()


def test_plain_and_gzip_give_the_same_bytes_whatever_the_name(tmp_path):
    text = b"a,b\n1,2\n" * 1000
    (tmp_path / "plain.csv.gz").write_bytes(text)
    (tmp_path / "packed.csv").write_bytes(gzip.compress(text))
    assert read(tmp_path / "plain.csv.gz") == read(tmp_path / "packed.csv") == text


def test_several_gzip_members_are_one_file(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    assert read(tmp_path / "x.gz") == b"one\ntwo\n"


def test_archive_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FREE", 1 << 20)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(8 << 20)))
    with pytest.raises(HermitcrabError, match=r"bomb.gz: unpacks to over 200 times its size"):
        read(tmp_path / "bomb.gz")


def test_text_that_packs_well_is_not_taken_for_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FREE", 1 << 20)
    text = "".join(f"{i},the same words again and again\n" for i in range(100_000)).encode()
    (tmp_path / "x.gz").write_bytes(gzip.compress(text))
    assert read(tmp_path / "x.gz") == text


@pytest.mark.parametrize(
    ("cut", "end", "told"), [(-9, b"", "ends too early"), (-8, bytes(8), "damaged"), (12, b"\xff" * 9, "")]
)
def test_spoilt_gzip_is_one_sentence(tmp_path, cut, end, told):
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(range(256)) * 40)[:cut] + end)
    with pytest.raises(HermitcrabError, match=f"x.gz: the gzip stream .*{told}"):
        read(tmp_path / "x.gz")


def test_missing_file_and_folder_are_one_sentence(tmp_path):
    with pytest.raises(HermitcrabError, match=r"gone.csv: cannot be read: No such file"):
        read(tmp_path / "gone.csv")
    with pytest.raises(HermitcrabError, match="is a folder"):
        read(tmp_path)


def test_type_goes_by_the_ending_unless_declared():
    names = ["a.CSV", "b.tsv.gz", "pypi:x==1/c.jsonl", "d.parquet", "e.txt.gz"]
    assert [kind_of(name) for name in names] == ["csv", "tsv", "jsonl", "parquet", "text"]
    assert kind_of("e.txt", "lines") == "lines"
    with pytest.raises(UsageError, match=r"its ending `.xls` does not tell what it is"):
        kind_of("a.xls")
