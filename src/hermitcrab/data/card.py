"""What a prepared data set is, for people and for machines: a page in the report's style, and Croissant 1.1.

Both are made from what `collect` and `prepare` left (sources, ledgers, `dropped.parquet`) and the rows' own lengths; neither holds a
text. Croissant: Akhtar et al. 2024 (doi:10.1145/3650203.3663326), with the fields of its responsible-AI vocabulary (rai:).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.data.tables import FORMATS, SPLITS, column_kind
from hermitcrab.digest import digest_file
from hermitcrab.lineage.licenses import canonical, obligations
from hermitcrab.store import Artifact

CONFORMS = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/", "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/", "dct": "http://purl.org/dc/terms/", "prov": "http://www.w3.org/ns/prov#",
    "citeAs": "cr:citeAs", "column": "cr:column", "conformsTo": "dct:conformsTo", "containedIn": "cr:containedIn",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract", "field": "cr:field",
    "fileObject": "cr:fileObject", "fileProperty": "cr:fileProperty", "fileSet": "cr:fileSet", "format": "cr:format",
    "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5",
    "parentField": "cr:parentField", "path": "cr:path", "recordSet": "cr:recordSet", "references": "cr:references",
    "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace", "separator": "cr:separator", "source": "cr:source",
    "subField": "cr:subField", "transform": "cr:transform", "samplingRate": "cr:samplingRate",
    "equivalentProperty": "cr:equivalentProperty",
}  # fmt: skip
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
SAMPLE = 4096  # bytes of each text by which its language is told


def data_facts(name: str, collect: Artifact, prepare: Artifact) -> dict[str, Any]:
    """What both forms tell: sources, counts by split and reason, lengths, languages, what licenses ask for. No text."""
    sources = collect.read("sources.json")
    format = sources[0]["format"]
    splits = {split: _measured(prepare.payload / f"{split}.parquet", format) for split in SPLITS}
    filters = prepare.payload / "filters.json"
    return {
        "name": name,
        "format": format,
        "columns": ["row_id", "source", "document", *FORMATS[format]],
        "sources": sources,
        "licenses": sorted({canonical(source["license"]) for source in sources}),
        "obligations": obligations([source["license"] for source in sources]),
        "splits": splits,
        "ledger": prepare.read("ledger.json"),
        "filters": prepare.read("filters.json") if filters.exists() else [],
        "dropped": _dropped(prepare.payload / "dropped.parquet"),
        "files": {split: digest_file(prepare.payload / f"{split}.parquet") for split in SPLITS},
    }


def _measured(path: Path, format: str) -> dict[str, Any]:
    """Rows of a split, their characters by quantile, and their languages, a row group at a time."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    column = FORMATS[format][0]
    lengths, languages = list[np.ndarray](), Counter[str]()
    with pq.ParquetFile(path) as file:
        rows = file.metadata.num_rows
        for group in range(file.num_row_groups if column_kind(column) == "text" else 0):
            text = file.read_row_group(group, columns=[column]).column(column)
            lengths.append(pc.utf8_length(text).to_numpy())
            languages.update(_languages(text))
    whole = np.concatenate(lengths) if lengths else np.zeros(0)
    return {
        "rows": rows,
        "characters": int(whole.sum()),
        "lengths": [int(x) for x in np.quantile(whole, QUANTILES)] if len(whole) else [],
        "languages": dict(languages.most_common()),
    }


def _languages(text: Any) -> Counter[str]:
    """Languages of a column of texts; nothing where the library that tells them is not installed."""
    import importlib.util

    import pyarrow as pa
    import pyarrow.compute as pc

    if importlib.util.find_spec("pycld2") is None:
        return Counter()
    from hermitcrab.data.filters import Texts, make_filter
    from hermitcrab.recipe.filters import Language

    cut = pc.utf8_slice_codeunits(text, 0, SAMPLE).cast(pa.large_string()).combine_chunks()
    return make_filter("language", Language())(Texts(pa.nulls(len(cut), pa.string()), cut)).found


def _dropped(path: Path) -> dict[str, dict[str, list[str]]]:
    """Ids of dropped rows by split and reason."""
    import pyarrow.parquet as pq

    found: dict[str, dict[str, list[str]]] = {}
    for row in pq.read_table(path).to_pylist():
        found.setdefault(row["split"], {}).setdefault(row["reason"], []).append(row["row_id"])
    return found


def croissant(facts: dict[str, Any]) -> dict[str, Any]:
    """Croissant 1.1 of the prepared rows: their files, fields, sources, and how they came about."""
    files = [
        {"@type": "cr:FileObject", "@id": f"{split}.parquet", "name": f"{split}.parquet", "contentUrl": f"{split}.parquet",
         "encodingFormat": "application/x-parquet", "sha256": facts["files"][split].removeprefix("sha256:")}
        for split in SPLITS
    ]  # fmt: skip
    records = [
        {"@type": "cr:RecordSet", "@id": split, "name": split, "key": {"@id": f"{split}/row_id"},
         "description": f"{facts['splits'][split]['rows']:,} {split} rows",
         "field": [_field(split, column) for column in facts["columns"]]}
        for split in SPLITS
    ]  # fmt: skip
    steps = [f"{e['name']}: {e['taken']:,} taken, {e['kept']:,} kept" + _reasons(e["dropped"]) for e in facts["ledger"]]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS,
        "name": facts["name"],
        "description": f"Rows of {facts['name']}, prepared by hermitcrab from {len(facts['sources'])} sources.",
        "license": [f"https://spdx.org/licenses/{name}" if "Ref-" not in name else name for name in facts["licenses"]],
        "inLanguage": sorted({name for split in facts["splits"].values() for name in split["languages"]} - {"unsure"}),
        "prov:wasDerivedFrom": [
            {"@id": source["uri"], "prov:label": source["uri"], "sha256": source["sha256"].removeprefix("sha256:")}
            for source in facts["sources"]
        ],
        "rai:dataCollection": "; ".join(f"{s['uri']} ({s['split']}, {s['license']})" for s in facts["sources"]),
        "rai:dataPreprocessingProtocol": steps,
        "rai:dataManipulationProtocol": [
            f"{entry['name']}: " + ", ".join(f"{n:,} {what}" for what, n in {**entry["changed"], **entry["found"]}.items())
            for entry in facts["filters"]
            if entry["changed"] or entry["found"]
        ],
        "rai:personalSensitiveInformation": [
            f"{kind}: {count:,} found"
            for entry in facts["filters"]
            if entry["name"] == "personal"
            for kind, count in entry["found"].items()
        ] or ["not searched for"],
        "rai:dataReleaseMaintenancePlan": "immutable; another version has other digests",
        "distribution": files,
        "recordSet": records,
    }  # fmt: skip


def _field(split: str, column: str) -> dict[str, Any]:
    kind = {"bytes": "sc:ImageObject", "number": "sc:Float"}.get(column_kind(column), "sc:Text")
    return {
        "@type": "cr:Field", "@id": f"{split}/{column}", "name": column, "dataType": kind,
        "source": {"fileObject": {"@id": f"{split}.parquet"}, "extract": {"column": column}},
    }  # fmt: skip


def _reasons(dropped: dict[str, int]) -> str:
    return "".join(f", {count:,} dropped ({reason})" for reason, count in dropped.items())
