"""Images with boxes: COCO's JSON (cocodataset.org, "Data format") and Pascal VOC's XML (M. Everingham et al., the VOC development kit).

A box is `[x, y, width, height]` in pixels, from the upper left corner. VOC counts pixels from 1 and gives the last one, not the one behind.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from hermitcrab.data.readers import BadRow
from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.references import files_below

LARGEST = 1 << 31  # bytes of annotations
ROOMY = 1 << 24  # bytes of one image's annotation


def coco(folder: Path, labels: Path, name: str) -> tuple[list[str], Any]:
    """The files that the annotations name, and what is known of each.

    Raises:
        HermitcrabError: no COCO annotations, an image that is not there.
    """
    if labels.stat().st_size > LARGEST:
        raise HermitcrabError(f"{name}: has over {LARGEST:,} bytes; refused")
    try:
        found = json.loads(labels.read_bytes())
        kinds = {c["id"]: str(c["name"]) for c in found["categories"]}
        files = {i["id"]: str(i["file_name"]) for i in found["images"]}
        objects: dict[str, list[dict[str, Any]]] = {file: [] for file in files.values()}
        crowds = 0
        for a in found["annotations"]:
            box = [float(edge) for edge in a["bbox"]]
            if len(box) != 4:
                raise ValueError(f"the box of annotation {a['id']} has {len(box)} numbers")
            if a.get("iscrowd"):
                crowds += 1
            else:
                objects[files[a["image_id"]]].append({"label": kinds[a["category_id"]], "box": box})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HermitcrabError(
            f"{name}: is no COCO annotation file: {type(error).__name__} {str(error)[:120]}"
        ) from error
    here = set(files_below(folder))
    if lost := sorted(set(objects) - here):
        raise HermitcrabError(f"{name}: names {len(lost):,} images that the folder does not have, such as {lost[0]}")
    return sorted(objects), lambda file, path: _judged(file, objects[file])


def voc(folder: Path, listing: Path | None, name: str) -> tuple[list[str], Any]:
    """The images of `JPEGImages` that have an annotation in `Annotations`, or those that a list of ImageSets names."""
    notes = {
        PurePosixPath(n).stem: n
        for n in files_below(folder)
        if n.endswith(".xml") and "Annotations" in PurePosixPath(n).parts
    }
    images = {PurePosixPath(n).stem: n for n in files_below(folder) if "JPEGImages" in PurePosixPath(n).parts}
    wanted = sorted(notes)
    if listing is not None:
        wanted = [line.split()[0] for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    if lost := [stem for stem in wanted if stem not in images or stem not in notes]:
        raise HermitcrabError(
            f"{name or folder.name}: {len(lost):,} images lack a file or an annotation, such as {lost[0]}"
        )
    if twice := next((stem for stem in wanted if wanted.count(stem) > 1), None):
        raise HermitcrabError(f"{name}: names {twice} a second time")
    return [images[stem] for stem in wanted], lambda file, path: _note(file, folder / notes[PurePosixPath(file).stem])


def _note(file: str, path: Path) -> dict[str, Any] | BadRow:
    etree = needs("lxml.etree", "data")
    try:
        if path.stat().st_size > ROOMY:
            raise ValueError(f"has over {ROOMY:,} bytes")
        parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False)
        objects = []
        for found in etree.fromstring(path.read_bytes(), parser).iterfind("object"):
            left, top, right, bottom = (
                float(found.findtext(f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")
            )
            objects.append(
                {
                    "label": found.findtext("name").strip(),
                    "box": [left - 1, top - 1, right - left + 1, bottom - top + 1],
                }
            )
    except (etree.LxmlError, ValueError, TypeError, AttributeError) as error:
        return BadRow(
            file, "annotation that cannot be read", f"{path.name} is no annotation of Pascal VOC: {str(error)[:120]}"
        )
    return _judged(file, objects)


def _judged(file: str, objects: list[dict[str, Any]]) -> dict[str, Any] | BadRow:
    for found in objects:
        if not (found["box"][2] > 0 and found["box"][3] > 0):
            return BadRow(
                file,
                "box without an area",
                f"the box of a {found['label']} is {found['box']}; expected a width and a height",
            )
    return {"objects": objects}
