"""One row followed from its source to where it ended: what `crab data trace-row` prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.data.tables import SPLITS, row_id, source_digest
from hermitcrab.errors import HermitcrabError

if TYPE_CHECKING:
    from hermitcrab.store import Artifact


def follow(row: str, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """What became of a row of a run: `collected` (where it came from), `kept` (split and place there, which is its number among that
    split's documents) or `dropped` (split and reason), `duplicate_of` and `duplicates` (of `clusters.parquet`), `contamination`.

    Raises:
        HermitcrabError: the run never had such a row.
    """
    collected, prepared = artifacts["collect"], artifacts["prepare"].payload
    found = [
        {
            "split": name,
            "source": record["source"],
            **_position(row, record["source"], name, collected.read("sources.json")),
        }
        for name in SPLITS
        for record in _rows(collected.payload / f"{name}.parquet", ["row_id", "source"], row_id=row)
    ]
    if not found:
        raise HermitcrabError(f"this run has no row {row}; expected one of its 16-digit row ids")
    told: dict[str, Any] = {"row_id": row, "collected": found}
    told["kept"] = [place for name in SPLITS if (place := _place(prepared / f"{name}.parquet", name, row))]
    told["dropped"] = [
        {"split": record["split"], "reason": record["reason"]}
        for record in _rows(prepared / "dropped.parquet", None, row_id=row)
    ]
    clusters = prepared / "clusters.parquet"
    told["duplicate_of"] = _rows(clusters, ["kept", "kept_split", "filter", "similarity"], row_id=row)
    told["duplicates"] = _rows(clusters, ["row_id", "split", "filter", "similarity"], kept=row)
    told["contamination"] = _rows(prepared / "contamination.parquet", None, row_id=row)
    return told


def _rows(path: Path, columns: list[str] | None, **where: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file in which a column has a value; none where there is no such file."""
    import pyarrow.parquet as pq

    if not path.exists():
        return []
    (name, value), *_ = where.items()
    return pq.read_table(path, columns=columns, filters=[(name, "=", value)]).to_pylist()


def _place(path: Path, split: str, row: str) -> dict[str, Any] | None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    place = pc.index(pq.read_table(path, columns=["row_id"]).column("row_id"), row).as_py()
    return None if place < 0 else {"split": split, "row": place}


def _position(row: str, uri: str, split: str, sources: list[dict[str, Any]]) -> dict[str, Any]:
    """Which record of its source a row is, from 0: the position whose digest its id is; null where none is found."""
    mine = [source for source in sources if source["uri"] == uri and source["split"] == split]
    for first in mine:
        group = [source for source in sources if source["split"] == split and source["rows_read"] == first["rows_read"]]
        for digests in ([first["sha256"]], [source["sha256"] for source in group]):
            digest = source_digest(digests)
            for position in range(
                2 * first["rows_read"] + 1000
            ):  # positions skip what is no record, such as empty lines
                if row_id(digest, position) == row:
                    return {"position": position, "sha256": first["sha256"], "license": first["license"]}
    return {"position": None}
