"""WARC (ISO 28500): web pages as a crawler kept them, by warcio. A row is a response that holds HTML or plain text."""

from __future__ import annotations

from typing import Any, BinaryIO

from hermitcrab.data.readers import BadRow, Record, Rows, Skipped, Table, check_cell
from hermitcrab.data.sources.html import LARGEST, page
from hermitcrab.errors import HermitcrabError, needs

PAGES = ("text/html", "application/xhtml+xml")


def open_warc(stream: BinaryIO, name: str) -> Table:
    """Records of `text`, `title`, `url` and `date`."""

    def read(only: object) -> Rows:
        iterator, errors = needs("warcio.archiveiterator", "data"), needs("warcio.exceptions", "data")
        position = 0
        try:
            for record in iterator.ArchiveIterator(stream):
                yield _row(record, name, position)
                position += 1
        except (errors.ArchiveLoadFailed, ValueError, EOFError, OSError) as error:
            raise HermitcrabError(
                f"{name}: record {position + 1:,}: is no WARC, or is damaged: {str(error)[:160]}"
            ) from error
        if position == 0:
            raise HermitcrabError(f"{name}: is empty or cut short; expected WARC records")

    return Table(["text", "title", "url", "date"], read)


def _row(record: Any, name: str, position: int) -> Record | BadRow | Skipped:
    where = f"{name}: record {position + 1:,}"
    if record.rec_type != "response":
        return Skipped(position, f"no response of a server: {record.rec_type}")
    http = record.http_headers
    status = http.get_statuscode() if http else ""
    if status != "200":
        return Skipped(position, "a response with another status than 200")
    kind, _, options = (http.get_header("Content-Type") or "").partition(";")
    kind = kind.strip().lower()
    if kind not in (*PAGES, "text/plain"):
        return Skipped(position, "a response that is neither HTML nor text")
    declared = record.length
    raw = record.content_stream().read(LARGEST + 1)
    if (
        declared and record.raw_stream.limit > 0 and len(raw) <= LARGEST
    ):  # warcio ends in silence where a file is cut short
        raise ValueError("it ends within a record")
    charset = options.partition("charset=")[2].strip(" \"'").split(";")[0] or None
    more = {
        "url": record.rec_headers.get_header("WARC-Target-URI") or "",
        "date": record.rec_headers.get_header("WARC-Date") or "",
    }
    if kind in PAGES:
        return page(raw, name, position, more, charset)
    if len(raw) > LARGEST:
        return BadRow(where, "page too large", f"has over {LARGEST:,} bytes")
    text = raw.decode("utf-8", "surrogateescape")
    return check_cell(where, "text", text) or Record(position, where, {"text": text, "title": "", **more})
