from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import sys
import tarfile
import wave
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard
from PIL import Image

from hermitcrab.data.images import decode
from hermitcrab.data.ledger import Ledger
from hermitcrab.data.reading import check_sources, read_rows
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.recipe import Source


def source(path, **more) -> Source:
    return Source.model_validate({"path": str(path), "license": "MIT", "format": "text", **more})


def read(path, on_error="drop", place=None, **more):
    """Rows and ledger of one source."""
    part, ledger = source(path, **more), Ledger("rows")
    check_sources([part])
    rows = list(read_rows(part, Path(path), "sha256:0", "u", ledger, on_error, place))
    return rows, ledger.as_json()


TEXTS = ["first  row", "第二 行", "third"]


@pytest.mark.parametrize(
    "name", ["a.parquet", "a.arrow", "a.arrows", "a.feather", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv"]
)
def test_same_rows_of_every_kind_of_file(tmp_path, name):
    table, path = pa.table({"text": TEXTS, "n": [1, 2, 3]}), tmp_path / name
    lines = "".join(json.dumps({"text": t, "n": i}) + "\n" for i, t in enumerate(TEXTS)).encode()
    if name.endswith(".parquet"):
        pq.write_table(table, path)
    elif name == "a.feather":
        pyarrow.feather.write_feather(table, path, compression="zstd")
    elif name.startswith("a.arrow"):
        new = pa.ipc.new_stream if name.endswith("s") else pa.ipc.new_file
        with new(path, table.schema) as out:
            out.write(table)
    elif name == "a.csv":
        path.write_text("text,n\n" + "".join(f"{t},{i}\n" for i, t in enumerate(TEXTS)))
    else:
        packed = {"gz": gzip.compress, "st": zstandard.compress}.get(name[-2:], bytes)(lines)
        path.write_bytes(packed)
    rows, counts = read(path, **({"type": "arrow"} if name.endswith("arrows") else {}))
    assert [row["text"] for row in rows] == TEXTS
    assert len({row["row_id"] for row in rows}) == counts["kept"] == 3


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_file_cut_short_is_one_sentence(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    table = pa.table({"text": [f"row {i} " * 50 for i in range(2000)]})
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        pyarrow.feather.write_feather(table, path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(HermitcrabError, match="cannot be read as") as told:
        read(path)
    assert "\n" not in str(told.value)


PAGE = """<!doctype html><html><head><title>A  page</title><style>p{}</style></head><body><nav>Home</nav>
<h1>Head</h1><script>alert(1)</script><p>One <b>bold</b>
word.</p><pre>  kept   space</pre><p>天气</p><!-- no --></body></html>"""


def test_page_gives_its_text_and_counts_what_was_cut(tmp_path):
    (tmp_path / "a.html").write_text(PAGE, encoding="utf-8")
    rows, counts = read(tmp_path / "a.html")
    assert rows[0]["text"] == "Head\nOne bold word.\n  kept   space\n天气"
    assert counts["changed"] == {"cut of a page: navigation": 1, "cut of a page: scripts": 1}
    (tmp_path / "b.html").write_bytes(PAGE.replace("<head>", '<head><meta charset="gb18030">').encode("gb18030"))
    assert "天气" in read(tmp_path / "b.html")[0][0]["text"]


def test_page_that_is_a_bomb_is_counted(tmp_path):
    (tmp_path / "deep.html").write_text("<div>" * 300_000 + "x")
    (tmp_path / "big.html").write_bytes(b"<p>x</p>" * (5 << 20))
    for name, reason in (("deep.html", "parsed|without text"), ("big.html", "too large")):
        with pytest.raises(HermitcrabError, match=reason):
            read(tmp_path / name)


def pdf(text: str) -> bytes:
    """The smallest PDF with a text: objects, a table of where they are, a trailer."""
    stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode()
    parts = [b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
             b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
             b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
             b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]  # fmt: skip
    out, places = io.BytesIO(b"%PDF-1.4\n"), []
    out.seek(0, 2)
    for n, part in enumerate(parts, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (n, part))
    start = out.tell()
    out.write(b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % start)
    return out.getvalue()


def test_pdf_gives_its_text_and_a_broken_one_a_sentence(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf("Hello there"))
    assert read(tmp_path / "a.pdf")[0][0]["text"] == "Hello there"
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4 nothing")
    with pytest.raises(HermitcrabError, match="PDF that cannot be read"):
        read(tmp_path / "b.pdf")


def warc(path: Path) -> bytes:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=path.suffix == ".gz")
        for n, (kind, body, status) in enumerate(
            [
                ("text/html; charset=utf-8", PAGE, "200 OK"),
                ("image/png", "x", "200 OK"),
                ("text/plain", "plain", "200 OK"),
                ("text/html", "no", "404 No"),
            ]
        ):
            http = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                f"http://site.test/{n}", "response", payload=io.BytesIO(body.encode()), http_headers=http
            )
            writer.write_record(record)
        writer.write_record(writer.create_warc_record("http://site.test/r", "resource", payload=io.BytesIO(b"r")))
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_warc_gives_its_pages_and_counts_the_rest(tmp_path, name):
    whole = warc(tmp_path / name)
    rows, counts = read(tmp_path / name, document="url")
    assert [(row["document"], row["text"][:5]) for row in rows] == [
        ("http://site.test/0", "Head\n"),
        ("http://site.test/2", "plain"),
    ]
    assert counts["taken"] == 5
    assert counts["dropped"] == {"a response that is neither HTML nor text": 1, "a response with another status than 200": 1,
                                 "no response of a server: resource": 1}  # fmt: skip
    (tmp_path / name).write_bytes(whole[:300])
    with pytest.raises(HermitcrabError, match=r"is no WARC, or is damaged|cut short"):
        read(tmp_path / name)


# Folders


def picture(path: Path, size=(5, 4), color=(10, 20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def huge_picture(path: Path) -> None:
    """A few bytes that say they are 10^5 x 10^5 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def wav(path: Path, samples: int = 80, rate: int = 8000) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.arange(samples, dtype="<i2").tobytes())
    return path.read_bytes()


def test_folder_names_are_labels_and_broken_images_are_counted(tmp_path):
    picture(tmp_path / "cat/1.png")
    picture(tmp_path / "dog/2.jpg")
    picture(tmp_path / "dog/same.png")  # the same bytes as cat/1.png
    (tmp_path / "cat/bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    huge_picture(tmp_path / "cat/huge.png")
    rows, counts = read(tmp_path, format="image-label", type="images")
    assert sorted(row["label"] for row in rows) == ["cat", "dog", "dog"]
    assert len({row["row_id"] for row in rows}) == 3
    assert counts["dropped"] == {"bad row: image that cannot be read": 2}
    assert decode(rows[0]["image"], "x")[0].shape == (4, 5, 3)


def test_huge_image_is_refused_by_its_header(tmp_path):
    huge_picture(tmp_path / "a/huge.png")
    with pytest.raises(HermitcrabError, match=r"has 100,000 x 100,000 pixels|decompression bomb"):
        read(tmp_path, "stop", format="image-label", type="images")


def test_manifest_names_labels(tmp_path):
    picture(tmp_path / "f/1.png")
    picture(tmp_path / "f/2.png", color=(1, 1, 1))
    (tmp_path / "m.csv").write_text("file,label,who\n1.png,a,x\n")
    more = dict(format="image-label", type="images", labels="m.csv", document="who")
    rows, counts = read(tmp_path / "f", place=tmp_path / "m.csv", **more)
    assert [(row["label"], row["document"]) for row in rows] == [("a", "x")]
    assert counts["dropped"] == {"bad row: file that the manifest does not name": 1}
    (tmp_path / "m.csv").write_text("file,label,who\nnone.png,a,x\n")
    with pytest.raises(HermitcrabError, match=r"names 1 files that the folder does not have, such as none\.png"):
        read(tmp_path / "f", place=tmp_path / "m.csv", **more)


def test_recordings_by_a_pattern_and_lying_headers_are_counted(tmp_path):
    wav(tmp_path / "7_jackson_0.wav")
    lying = bytearray(wav(tmp_path / "8_nina_0.wav"))
    lying[40:44] = struct.pack("<I", 0x7FFFFFFF)
    (tmp_path / "8_nina_0.wav").write_bytes(lying)
    wav(tmp_path / "other.wav")
    rows, counts = read(
        tmp_path,
        format="audio-text",
        type="audio",
        pattern=r"^(?P<digit>\d)_(?P<speaker>[a-z]+)_",
        columns={"text": "digit"},
        document="speaker",
    )
    assert [(row["text"], row["document"]) for row in rows] == [("7", "jackson")]
    with wave.open(io.BytesIO(rows[0]["audio"])) as file:
        assert (file.getnframes(), file.getframerate()) == (80, 8000)
    assert counts["dropped"] == {
        "bad row: audio that cannot be read": 1,
        "bad row: path that does not fit the pattern": 1,
    }


def test_coco_boxes(tmp_path):
    picture(tmp_path / "i/a.jpg")
    found = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 3, "name": "cell"}],
             "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}]}  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(found))
    more = dict(format="image-objects", type="coco", labels="c.json", place=tmp_path / "c.json")
    rows, _ = read(tmp_path / "i", **more)
    assert json.loads(rows[0]["objects"]) == [{"label": "cell", "box": [1.0, 2.0, 3.0, 4.0]}]
    del found["categories"]
    (tmp_path / "c.json").write_text(json.dumps(found))
    with pytest.raises(HermitcrabError, match="is no COCO annotation file"):
        read(tmp_path / "i", **more)


@pytest.mark.data
def test_real_blood_cells_have_boxes(shared_data, tmp_path):
    with tarfile.open(shared_data / "detection-bccd/bccd.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    listing = next(tmp_path.rglob("ImageSets/Main/test.txt"))
    some = tmp_path / "some.txt"
    some.write_text("".join(line + "\n" for line in listing.read_text().split()[:6]))
    part = source(tmp_path, format="image-objects", type="voc", labels="some.txt")
    rows = list(read_rows(part, tmp_path, "d", "u", Ledger("rows"), labels=some))
    assert len(rows) == 6
    objects = [o for row in rows for o in json.loads(row["objects"])]
    assert {o["label"] for o in objects} <= {"RBC", "WBC", "Platelets"}
    for row in rows:
        height, width, _ = decode(row["image"], "x")[0].shape
        for found in json.loads(row["objects"]):
            x, y, w, h = found["box"]
            assert x >= -1
            assert y >= -1
            assert x + w <= width + 1
            assert y + h <= height + 1


@pytest.mark.data
def test_real_digits_are_read_by_their_names(shared_data, tmp_path):
    with tarfile.open(shared_data / "speech-digits/recordings.tar.gz") as archive:
        members = [m for m in archive.getmembers() if m.name.endswith("_0.wav")]
        archive.extractall(tmp_path, members=members, filter="data")
    part = source(tmp_path, format="audio-text", type="audio", pattern=r"(?P<digit>\d)_(?P<speaker>[a-z]+)_\d+\.wav$",
                  columns={"text": "digit"},
                  document="speaker")  # fmt: skip
    rows = list(read_rows(part, tmp_path, "d", "u", Ledger("rows")))
    assert len(rows) == 60
    assert {row["text"] for row in rows} == set("0123456789")
    assert len({row["document"] for row in rows}) == 6


def test_sources_that_cannot_be_are_refused():
    for more, told in (
        ({"type": "images"}, "do not go together"),
        ({"type": "audio", "format": "audio-text", "pattern": "("}, "is no regular expression"),
        ({"type": "audio", "format": "audio-text", "pattern": "x"}, "names no part"),
        ({"type": "coco", "format": "image-objects"}, "needs `labels`"),
        ({"type": "csv", "labels": "x"}, "`labels` is for"),
    ):
        with pytest.raises(UsageError, match=told):
            check_sources([source("x", **more)])


def test_line_of_a_gigabyte_is_refused_in_flat_memory(tmp_path):
    with open(tmp_path / "a.jsonl", "wb") as out:
        out.write(b'{"text": "ok"}\n{"text": "')
        out.truncate(1 << 30)
    script = """
import resource, sys
from pathlib import Path
from hermitcrab.data.ledger import Ledger
from hermitcrab.data.reading import read_rows
from hermitcrab.errors import HermitcrabError
from hermitcrab.recipe import Source
import pyarrow.json, pyarrow.compute, numpy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    list(read_rows(Source(path="a.jsonl", license="MIT", format="text"), Path(sys.argv[1]), "d", "u", Ledger("rows")))
except HermitcrabError as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error)
"""
    told = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.jsonl")], capture_output=True, text=True, check=True
    ).stdout
    assert "has over 16,777,216 characters" in told
    assert int(told.split()[0]) < 300  # MiB


@pytest.mark.parametrize("text", [
    '{"text": "a"}\n{"text": "b"}\n', '{"text": "a", "text": "b"}\n', '{"text": "a", "x": NaN}\n', '{"text": 1}\n',
    '{"text": "a"} {"text": "b"}\n',
    '{"text": "\\u0000"}\n', '{"text": "\\ud800"}\n', '{"text": " "}\n{"text": "\u3000"}\n', '{"text": "a"}\n\n{"text": null}\n', 
    '{"x": 1}\n{"text": "a"}\n',
    '{"text": "a", "x": [[1]]}\n', '\ufeff{"text": "a"}\n{"text": "b"}', '{"text": "a"\n}\n', '[1]\n{"text": "v"}\n',
    '{"text": "a", "x": 1e999}\n',
])  # fmt: skip
def test_columns_and_single_rows_tell_the_same(tmp_path, monkeypatch, text):
    (tmp_path / "a.jsonl").write_bytes(text.encode("utf-8", "surrogatepass"))
    found = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr("hermitcrab.data.reading._columnwise", lambda *_: None)
        ledger = Ledger("rows")
        try:
            rows = list(read_rows(source("a.jsonl"), tmp_path / "a.jsonl", "d", "u", ledger, "drop"))
        except HermitcrabError as error:
            rows = [str(error)]
        found.append((rows, ledger.as_json()))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["text", "lines"])
@pytest.mark.parametrize(
    "text",
    [
        "a\n\nb\nc\n",
        "\n \n a\nb \n\u3000\nc",
        "a\r\n\r\nb\r\n",
        "x",
        "a\rb\r\rc",
        "\ufeffa\n\n\n\nb\n\n",
        "a\n\x1c\nb\n",
        "a\x00\n\nb\n",
    ],
)
def test_text_in_pieces_is_what_it_is_line_by_line(tmp_path, monkeypatch, kind, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    monkeypatch.setattr("hermitcrab.data.blocks.PIECE", 3)
    fast = read(path, type=kind)
    monkeypatch.setattr("hermitcrab.data.reading._columnwise", lambda *_: None)
    monkeypatch.setattr("hermitcrab.data.blocks.PIECE", 1 << 20)
    assert fast == read(path, type=kind)
