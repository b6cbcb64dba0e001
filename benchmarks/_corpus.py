"""The documentation corpus: real English and Chinese text out of Debian's documentation packages, with faults planted and known.

    python benchmarks/_corpus.py FOLDER --size 40MB     (or 265MB, 2GB; any number of bytes)

leaves `corpus-40MB.parquet` ({id, text, lang}), `corpus-40MB.truth.json` and `packages.txt` (every package, its version and digest)
in FOLDER. Packages are fetched by `apt-get download`, whatever apt is configured for; nothing is installed. HTML becomes text by lxml,
man pages lose their macros. The same packages give the same bytes.

Planted, of the documents: 6.4 % byte-exact copies, 2.4 % copies that differ in Unicode form and whitespace alone (full width,
no-break spaces, decomposed letters), 8 % near copies (0.2 to 5 % of the words replaced, dropped or doubled), 3.2 % junk (one phrase
repeated, symbols, a few words). The truth file says of each planted id what it is, and of a copy whose. Chinese is a fifth of the
text; where the packages have less, documents recombined from sentences of theirs fill it up: their ids begin with `zh-re`.
Above what the packages hold (2 GB), everything is recombined (`re-`): sentences in an order of their own, so no text of it is
near another by design; it says what size costs, and nothing of quality.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

CHINESE = (
    "manpages-zh", "libreoffice-help-zh-cn", "libreoffice-help-zh-tw", "debian-reference-zh-cn", "debian-reference-zh-tw",
    "debian-faq-zh-cn", "kicad-doc-zh", "maint-guide-zh-cn",
)  # fmt: skip
ENGLISH = (
    "linux-doc-6.1", "libreoffice-help-en-us", "python3.11-doc", "openjdk-17-doc", "libboost1.74-doc", "perl-doc", "postgresql-doc-15",
    "debian-reference-en", "manpages", "manpages-dev", "kicad-doc-en", "erlang-doc", "rust-doc", "cmake-doc", "nodejs-doc", "octave-doc",
    "git-doc", "r-doc-html", "lilypond-doc-html",
)  # fmt: skip
SIZES = {"40MB": 40_000_000, "265MB": 265_000_000, "2GB": 2_000_000_000}
EXACT, VARIANT, NEAR, JUNK = 0.064, 0.024, 0.08, 0.032  # of the documents
SHORTEST, LONGEST = 400, 400_000  # characters of a document
HAN = re.compile(r"[\u3400-\u9fff]")
MACRO = re.compile(r"^[.'].*$|\\f[BIRP]|\\[&%|^]", re.MULTILINE)
GROUP = 4096


# packages


def packages(folder: Path) -> dict[str, Path]:
    """Every package, fetched once. What apt does not have any more is told and left out."""
    home = folder / "debs"
    home.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, name in enumerate((*CHINESE, *ENGLISH)):
        files = sorted(home.glob(f"{name}_*.deb"))
        if not files:
            say(f"fetching {name} ({number + 1} of {len(CHINESE) + len(ENGLISH)})")
            done = subprocess.run(
                ["apt-get", "download", "-q", name], cwd=home, capture_output=True, text=True, check=False
            )
            files = sorted(home.glob(f"{name}_*.deb"))
            if not files:
                say(f"apt has no {name}: {done.stderr.strip()[-200:]}")
                continue
        found[name] = files[-1]
    lines = [f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in found.values()]
    (folder / "packages.txt").write_text("\n".join(lines) + "\n")
    return found


def members(package: Path) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of the documents of a package, in its own order."""
    child = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
    with tarfile.open(fileobj=child.stdout, mode="r|") as tar:
        for member in tar:
            name = member.name.removesuffix(".gz")
            if member.isfile() and member.size < 4_000_000 and wanted(name):
                data = cast(Any, tar.extractfile(member)).read()
                yield member.name, gzip.decompress(data) if member.name.endswith(".gz") else data
    child.stdout.close()  # type: ignore[union-attr]
    if child.wait():
        raise RuntimeError(f"dpkg-deb could not read {package}")


def wanted(name: str) -> bool:
    if "/man/" in name:
        return True
    return name.endswith((".html", ".htm", ".xhtml", ".txt", ".rst", ".pod")) and "index-files" not in name


def to_text(name: str, data: bytes) -> str:
    from lxml import etree, html

    if name.removesuffix(".gz").endswith(("html", "htm")):
        try:
            tree = html.document_fromstring(data, parser=html.HTMLParser(encoding="utf-8"))
        except (etree.ParserError, ValueError):
            return ""
        etree.strip_elements(tree, "script", "style", "nav", "head", with_tail=False)
        text = "\n".join(part for part in tree.itertext() if part.strip())
    else:
        text = data.decode("utf-8", "replace")
        if "/man/" in name:
            text = MACRO.sub("", text)
    text = re.sub(r"[ \t]+", " ", text)
    return re.sub(r"\n\s*\n+", "\n\n", text).strip()


def language(text: str) -> str:
    return "zh" if len(HAN.findall(text[:4000])) > 0.2 * len(text[:4000]) else "en"


def documents(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """(id, text) by language, all that the packages have; cached, for reading HTML costs more than anything after it."""
    cache = folder / "documents.jsonl"
    if not cache.exists():
        beside = cache.with_suffix(".part")
        with open(beside, "w") as out:
            for name, package in packages(folder).items():
                kept = 0
                for path, data in members(package):
                    text = to_text(path, data)[:LONGEST]
                    if len(text) < (SHORTEST // 3 if name in CHINESE else SHORTEST) or "\ufffd" in text:
                        continue
                    identity = f"{name}:{path.removeprefix('./')}"
                    print(json.dumps([language(text), identity, text], ensure_ascii=False), file=out)
                    kept += 1
                say(f"{name}: {kept:,} documents, {out.tell() / 1e6:,.0f} MB in all")
        os.replace(beside, cache)
    found: dict[str, list[tuple[str, str]]] = {"en": [], "zh": []}
    seen = set()
    with open(cache) as lines:
        for line in lines:
            lang, identity, text = json.loads(line)
            key = hashlib.md5(text.encode(), usedforsecurity=False).digest()
            if key not in seen:  # every duplicate of the corpus is one that the truth knows
                seen.add(key)
                found[lang].append((identity, text))
    return found


# sizes


def sample(listed: list[tuple[str, str]], size: int, random: np.random.Generator) -> list[tuple[str, str]]:
    """Documents drawn without replacement until `size` bytes are there, or all."""
    chosen, total = [], 0
    for place in random.permutation(len(listed)):
        if total >= size:
            break
        chosen.append(listed[place])
        total += len(listed[place][1].encode())
    return chosen


def recombined(
    listed: list[tuple[str, str]], size: int, random: np.random.Generator, prefix: str
) -> Iterator[tuple[str, str]]:
    """Documents of sentences drawn from all of `listed`, of about the lengths that those have, `size` bytes in all."""
    sentences = [
        s.strip() for _, text in listed for s in re.split(r"(?<=[.!?。！？])\s*\n?", text) if 8 < len(s.strip()) < 400
    ]
    total = number = 0
    while total < size:
        wanted_size = min(20_000, max(600, int(random.lognormal(7.6, 0.9))))
        parts: list[str] = []
        while wanted_size > 0:
            part = sentences[int(random.integers(len(sentences)))]
            parts.append(part)
            wanted_size -= len(part.encode())
        text = ("" if prefix.startswith("zh") else " ").join(parts)
        total += len(text.encode())
        yield f"{prefix}-{number}", text
        number += 1


# faults


def variant(text: str, random: np.random.Generator) -> str:
    """The same to NFKC and to whoever ignores whitespace."""
    kind = int(random.integers(3))
    if kind == 0:
        return unicodedata.normalize("NFD", text).replace(" ", "\u00a0")
    if kind == 1:
        return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" and random.random() < 0.2 else c for c in text) + "\n"
    return re.sub(r" ", "  ", text) + " \n"


def near(text: str, random: np.random.Generator) -> str:
    """Words (or Han characters) replaced, dropped or doubled, 0.2 to 5 % of them."""
    parts = re.findall(r"[\u3400-\u9fff]|[^\s\u3400-\u9fff]+|\s+", text)
    rate = float(random.uniform(0.002, 0.05))
    for place in np.flatnonzero(random.random(len(parts)) < rate):
        if not parts[place].isspace():
            other = parts[int(random.integers(len(parts)))].strip() or "x"
            parts[place] = ("", parts[place] + " " + parts[place], other)[int(random.integers(3))]
    return "".join(parts)


def junk(text: str, random: np.random.Generator) -> str:
    words = text.split()[:6]
    kind = int(random.integers(3))
    if kind == 0:
        return (" ".join(words) + "\n") * int(random.integers(60, 200))
    if kind == 1:
        return " ".join("#=|*_~^<>"[int(i)] * 8 for i in random.integers(9, size=200))
    return " ".join(words[:4])[:60]


def planted(base: list[tuple[str, str, str]], random: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    """The documents with copies and junk among them, in a drawn order; and the truth."""
    truth: dict[str, Any] = {"copies": {}, "junk": {}}
    rows = list(base)
    makers = {"exact": (EXACT, lambda text, _: text), "variant": (VARIANT, variant), "near": (NEAR, near)}
    for kind, (share, make) in makers.items():
        for number, place in enumerate(random.permutation(len(base))[: int(share * len(base))]):
            identity, text, lang = base[place]
            rows.append((f"{kind}-{number}", make(text, random), lang))
            truth["copies"][f"{kind}-{number}"] = {"kind": kind, "of": identity, "lang": lang}
    for number, place in enumerate(random.permutation(len(base))[: int(JUNK * len(base))]):
        rows.append((f"junk-{number}", junk(base[place][1], random), base[place][2]))
        truth["junk"][f"junk-{number}"] = base[place][2]
    return [rows[i] for i in random.permutation(len(rows))], truth


def make(folder: Path, size: str, seed: int = 0) -> tuple[Path, Path]:
    """Corpus and truth of `size` (a name of SIZES, or bytes) below `folder`; made unless they are there."""
    corpus, truth_path = folder / f"corpus-{size}.parquet", folder / f"corpus-{size}.truth.json"
    if corpus.exists() and truth_path.exists():
        return corpus, truth_path
    wanted_bytes = SIZES.get(size) or int(size)
    found, random = documents(folder), np.random.Generator(np.random.PCG64(seed))
    real = int(wanted_bytes / (1 + EXACT + VARIANT + NEAR))
    base = []
    for lang, share in (("zh", 0.2), ("en", 0.8)):
        part = sample(found[lang], int(share * real), random)
        missing = int(share * real) - sum(len(text.encode()) for _, text in part)
        if missing > 1_000_000 and wanted_bytes <= SIZES["265MB"]:
            part += recombined(found[lang], missing, random, f"{lang}-re")
        base += [(identity, text, lang) for identity, text in part]
        say(f"{lang}: {len(part):,} documents")
    rows, truth = planted(base, random)
    truth |= {"size": size, "seed": seed, "documents": len(rows)}
    write(corpus, rows, found, wanted_bytes, random)
    beside = truth_path.with_suffix(".part")
    beside.write_text(json.dumps(truth, ensure_ascii=False))
    os.replace(beside, truth_path)
    return corpus, truth_path


def write(corpus: Path, rows: list[Any], found: dict[str, Any], wanted_bytes: int, random: np.random.Generator) -> None:
    """As Parquet; beyond what the packages have, recombined documents are written as they are made, never held."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.schema([("id", pa.string()), ("text", pa.string()), ("lang", pa.string())])
    beside, total = corpus.with_suffix(".part"), 0

    def more() -> Iterator[tuple[str, str, str]]:
        yield from rows
        missing = wanted_bytes - sum(len(text.encode()) for _, text, _ in rows)
        if missing > 0 and wanted_bytes > SIZES["265MB"]:
            for lang, share in (("zh", 0.2), ("en", 0.8)):
                for identity, text in recombined(found[lang], int(share * missing), random, f"{lang}-re"):
                    yield identity, text, lang

    with pq.ParquetWriter(beside, kind, compression="zstd") as out:
        group: list[tuple[str, str, str]] = []
        for row in more():
            group.append(row)
            total += len(row[1].encode())
            if len(group) == GROUP:
                out.write_table(pa.table([list(column) for column in zip(*group, strict=True)], schema=kind))
                group = []
                say(f"{corpus.name}: {total / 1e6:,.0f} of {wanted_bytes / 1e6:,.0f} MB")
        if group:
            out.write_table(pa.table([list(column) for column in zip(*group, strict=True)], schema=kind))
    os.replace(beside, corpus)


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="40MB")
    args = parser.parse_args()
    for path in make(args.folder, args.size):
        print(path)


if __name__ == "__main__":
    main()
