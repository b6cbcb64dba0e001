"""What an image classifier takes from training rows before any weight is learnt, or brings along: its labels, and how it sees an image.

`{labels [K], image [H, W, C], mean [C], std [C]}`, mean and spread as shares of 255: what transformers keeps as `id2label` in config.json
and as preprocessor_config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.data.images import stack
from hermitcrab.errors import HermitcrabError
from hermitcrab.models.tokenizer import read_json_file
from hermitcrab.progress import progress

if TYPE_CHECKING:
    import pyarrow as pa

FEWEST_LABELS = 2
PREPARED = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_center_crop": False,
}  # as `save` means it


def fit(labels: list[str], pixels_NHWC: np.ndarray) -> dict[str, Any]:
    """Labels in alphabetical order; height, width, channels; mean and spread of all pixels by channel."""
    total, squares = np.zeros(pixels_NHWC.shape[3]), np.zeros(pixels_NHWC.shape[3])
    for part in np.array_split(pixels_NHWC, max(1, len(pixels_NHWC) // 4096)):
        whole = part.astype(np.int64)
        total += whole.sum(axis=(0, 1, 2))
        squares += (whole * whole).sum(axis=(0, 1, 2))
    count = max(1, pixels_NHWC.size // pixels_NHWC.shape[3])
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return {
        "labels": sorted(set(labels)),
        "image": list(pixels_NHWC.shape[1:]),
        "mean": [round(float(m) / 255, 6) for m in mean],
        "std": [round(float(s) / 255, 6) or 1.0 for s in spread],  # a channel that never varies is only shifted
    }


def check(fitted: dict[str, Any], where: str) -> None:
    """Raises HermitcrabError for what `fit` could not have made: a record may be a stranger's."""
    labels, image = fitted.get("labels"), fitted.get("image")
    mean, std = fitted.get("mean"), fitted.get("std")
    sound = (
        isinstance(labels, list) and len(labels) >= FEWEST_LABELS and all(isinstance(label, str) for label in labels)
        and len(set(labels)) == len(labels)
        and isinstance(image, list) and len(image) == 3 and all(type(n) is int and 0 < n < 1 << 16 for n in image)
        and image[2] in (1, 3)
        and all(isinstance(v, list) and len(v) == image[2] and all(type(x) is float for x in v) for v in (mean, std))
        and all(x > 0 for x in std or ())
    )  # fmt: skip
    if not sound:
        raise HermitcrabError(f"{where}: `fitted` is not what image-classification fits: labels, image, mean and std")


def opens(path: Path) -> dict[str, Any] | None:
    """What a folder of an image classifier says of itself; None where it is none.

    Raises:
        HermitcrabError: it prepares its images otherwise than they are prepared here, but for mean, spread and size.
    """
    files = [path / "config.json", path / "preprocessor_config.json"]
    config, prepared = (read_json_file(file) if file.is_file() else {} for file in files)
    if not isinstance(config, dict) or not isinstance(prepared, dict):
        return None
    names, size = config.get("id2label"), prepared.get("size")
    if not isinstance(names, dict) or not isinstance(size, dict) or "num_channels" not in config:
        return None
    if not size.keys() >= {"height", "width"} or not prepared.keys() >= {"image_mean", "image_std"}:
        return None
    for key, wanted in PREPARED.items():
        if prepared.get(key, wanted) != wanted:
            raise HermitcrabError(
                f"{files[1]}: {key}: expected {wanted}, as images are prepared here. Received: {prepared[key]!r}"
            )
    mean, std = (
        [float(x) if type(x) is int else x for x in v] if isinstance(v, list) else v
        for v in (prepared["image_mean"], prepared["image_std"])
    )
    image = [size["height"], size["width"], config["num_channels"]]
    fitted = {"labels": [names.get(str(i)) for i in range(len(names))], "image": image, "mean": mean, "std": std}
    check(fitted, f"{files[0]} and {files[1].name}")
    return fitted


def of_base(labels: list[str], base: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a base says of itself, its labels in its own order.

    Raises:
        HermitcrabError: it does not say it, or knows other labels than `labels`.
    """
    fitted = opens(path)
    if fitted is None:
        raise HermitcrabError(
            f"{base['name']}: does not say how it sees an image; expected id2label and num_channels in config.json, and "
            "preprocessor_config.json with size, image_mean and image_std"
        )
    known, here = set(fitted["labels"]), set(labels)
    if known != here:
        raise HermitcrabError(
            f"the base knows other labels than the training rows have: only it {sorted(known - here)[:5]}, only they "
            f"{sorted(here - known)[:5]}; rename them with `values`, or start from scratch"
        )
    return fitted


def pixels(rows: pa.Table, shape: list[int] | None) -> np.ndarray:
    """The images of rows, uint8 [N, H, W, C]; those of the last table are kept, so that fitting and training decode it once."""
    held, found_NHWC = _last or (None, np.zeros(0))
    if held is not rows or (shape and list(found_NHWC.shape[1:]) != shape):
        names = [f"row {row}" for row in rows["row_id"].to_pylist()]
        wanted = (shape[0], shape[1], shape[2]) if shape else None
        with progress("images", len(names), "images") as bar:
            found_NHWC = stack(rows["image"].to_pylist(), names, wanted, bar.add)
        _last[:] = rows, found_NHWC
    return found_NHWC


_last: list[Any] = []  # the table that was decoded last, and its pixels


def wave(number: int, shape: list[int]) -> np.ndarray:
    """Pattern `number`, uint8 [H, W, C]: two crossed waves whose directions and lengths go with the number."""
    height, width, channels = shape
    y, x, c = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), np.arange(channels), indexing="ij")
    angle, length = 2.399963 * number, 1 + number % 7  # the golden angle leaves no two directions alike
    first = np.sin(2 * np.pi * length * (x * np.cos(angle) + y * np.sin(angle)) + c)
    second = np.cos(2 * np.pi * (1 + number % 5) * (y * np.cos(angle) - x * np.sin(angle)) + number)
    return np.clip(127.5 + 63.75 * (first + second), 0, 255).astype(np.uint8)
