"""Text out of a PDF, by pypdf in a process of its own: a file from anywhere may ask for all memory and time, and is given little."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

from hermitcrab.data.readers import BadRow, Record, Rows, Table, check_cell
from hermitcrab.errors import needs

LARGEST = 1 << 28  # bytes of a file
PAGES = 20_000
SECONDS = 120  # of CPU, for one file
MEMORY = 2 << 30


def open_pdf(path: Path, name: str) -> Table:
    """A file as one record of `text` and `pages`."""

    def read(only: object) -> Rows:
        yield _record(path, name)

    return Table(["text", "pages"], read)


def _record(path: Path, name: str) -> Record | BadRow:
    needs("pypdf", "data")
    if path.stat().st_size > LARGEST:
        return BadRow(name, "PDF too large", f"has over {LARGEST:,} bytes; refused")
    try:
        ended = subprocess.run(
            [sys.executable, "-c", "from hermitcrab.data.sources.pdf import main; main()", str(path.absolute())],
            capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=SECONDS * 4,
        )  # fmt: skip
        told = (
            json.loads(ended.stdout)
            if ended.returncode == 0
            else {"error": "it asks for more time or memory than a file is given"}
        )
    except (subprocess.TimeoutExpired, ValueError):
        told = {"error": "it asks for more time than a file is given"}
    if "error" in told:
        return BadRow(name, "PDF that cannot be read", f"cannot be read as PDF: {told['error']}")
    text = "\n\n".join(page.strip() for page in told["pages"] if page.strip()).replace("\0", "\ufffd")
    if not text:
        return BadRow(name, "PDF without text", f"has {len(told['pages'])} pages and no text (are they pictures?)")
    empty = sum(not page.strip() for page in told["pages"])
    cut = ("pages without text in a PDF",) if empty else ()
    return check_cell(name, "text", text) or Record(0, name, {"text": text, "pages": str(len(told["pages"]))}, cut)


def main() -> None:
    """The process of its own: one file's pages as JSON."""
    import logging

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    logging.disable(logging.CRITICAL)
    from pypdf import PdfReader

    try:
        reader = PdfReader(sys.argv[1])
        if len(reader.pages) > PAGES:
            raise ValueError(f"it has {len(reader.pages):,} pages; at most {PAGES:,} are read")
        told: dict[str, object] = {"pages": [page.extract_text() for page in reader.pages]}
    except Exception as error:  # noqa: BLE001 - a stranger's file: whatever it does to the parser is one sentence
        told = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    sys.stdout.write(json.dumps(told).encode("utf-8", "replace").decode())
