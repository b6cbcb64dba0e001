"""image-classification: an image in, one of the labels of the training rows out; any image classifier of transformers, or our mlp.

Notable:
- Labels, size and the mean and spread of the pixels are fitted on training rows alone and go with the model, as `id2label` in
  config.json and as preprocessor_config.json, where other libraries look for them.
- Pixels stay in memory as bytes; a batch is gathered and scaled at once, so no image is decoded twice.

Shapes: N rows, B batch, H height, W width, C channels, K labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.data.images import decode, resized
from hermitcrab.data.ledger import Ledger
from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import progress
from hermitcrab.recipe import Evaluate, Recipe, Train
from hermitcrab.store import write_json
from hermitcrab.tasks import Asking, Start, Work, fitting
from hermitcrab.tasks.classifier import Classifier
from hermitcrab.tasks.examples import Named
from hermitcrab.tasks.inputs import images

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from hermitcrab.tasks.explained import Question

PROBES = 64
PACE = 4  # times that they are answered one by one to see how fast a model is


@dataclass(frozen=True, slots=True)
class Batch:
    pixels_BCHW: torch.Tensor  # float32, scaled
    label_B: torch.Tensor  # int64, IGNORE where nothing is learnt
    count: int


class ImageExamples(Named):
    def __init__(self, pixels_NCHW: torch.Tensor, label_N: torch.Tensor, names: list[str]):
        self.flat, self.shape = pixels_NCHW.flatten(1), pixels_NCHW.shape[1:]
        self.label_N, self.names = label_N, names


class ImageClassification(Classifier):
    name = "image-classification"
    formats = ("image-label",)
    kind = "IMAGE_CLASSIFICATION"
    served = True
    opens_from = (
        "config.json with id2label and num_channels, and preprocessor_config.json with image_mean, image_std and a size of "
        "height and width"
    )
    baselines = ("majority", "logistic-regression")
    compresses = ("onnx", "prune", "distill")
    exports = ("safetensors", "onnx", "openvino")

    @classmethod
    def fit(cls, rows: pa.Table, base: dict[str, Any], path: Path) -> dict[str, Any]:
        """Labels in alphabetical order; height, width, channels; mean and spread (of all pixels, as shares of 255) by channel.
        A base brings its own, in its own order, and the rows must go with them.

        Raises:
            HermitcrabError: the base knows other labels, or images of another size.
        """
        labels = cls.answers(rows)
        if base["kind"] == "scratch":
            return fitting.fit(labels, fitting.pixels(rows, None))
        fitted = fitting.of_base(labels, base, path)
        fitting.pixels(rows, fitted["image"])  # of another size: told with the row
        return fitted

    @classmethod
    def check_fitted(cls, fitted: dict[str, Any], where: str) -> None:
        fitting.check(fitted, where)

    @classmethod
    def opens(cls, path: Path) -> dict[str, Any] | None:
        return fitting.opens(path)

    @classmethod
    def read_inputs(cls, words: Sequence[str], column: str) -> list[tuple[str, bytes]]:
        return images(words)

    @classmethod
    def features(cls, rows: pa.Table) -> np.ndarray:
        """Pixels as they are, float32 [N, H * W * C] from 0 to 1."""
        pixels_NHWC = fitting.pixels(rows, None)
        return pixels_NHWC.reshape(len(pixels_NHWC), -1).astype(np.float32) / 255

    @classmethod
    def work(cls, recipe: Recipe, base: dict[str, Any], rows: Mapping[str, float], test: Path | None) -> Work:
        """Of an mlp on images of `row_bytes` pixels; of a model whose size is known, its parameters at 16 x 16 pixels a position."""
        config = {**(recipe.base.architecture or {}), **base.get("configuration", {})}
        pixels = max(1.0, rows["row_bytes"])
        held = (
            rows["train"] * pixels * (9 if "logistic-regression" in recipe.evaluate.baselines else 1)
        )  # bytes, and twice float32
        if base.get("parameters"):
            tokens = max(1.0, pixels / 256)
            return Work(
                base["parameters"],
                base["parameters"],
                tokens,
                tokens,
                tokens,
                held + 64 * pixels * recipe.train.batch_size,
            )
        sizes = [pixels, *config.get("hidden_sizes", [128, 64]), 10]
        parameters = float(sum(a * b for a, b in pairwise(sizes)))
        return Work(parameters, parameters, 1, 1, 1, held + 16.0 * recipe.train.batch_size * sum(sizes))

    def __init__(self, start: Start, train: Train):
        super().__init__(start, train)
        import torch

        mean_C, std_C = torch.tensor(self.fitted["mean"]), torch.tensor(self.fitted["std"])
        self.device: torch.device | None = None
        self._scale = (1 / (255 * std_C))[:, None, None], (-mean_C / std_C)[:, None, None]

    def told(self) -> dict[str, Any]:
        return {"preprocessing_digest": digest_json({k: self.fitted[k] for k in ("image", "mean", "std")})}

    def configured(self) -> dict[str, Any]:
        height, width, channels = self.fitted["image"]
        square = self.start.base["model_type"] != "mlp" and height == width
        return {**super().configured(), "image_size": height if square else [height, width], "num_channels": channels}

    def save(self, model: Any, folder: Path) -> None:
        """Weights and config.json, and preprocessor_config.json in the words of transformers' image processors."""
        height, width, _ = self.fitted["image"]
        super().save(model, folder)
        write_json(folder / "preprocessor_config.json", {
            "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": height, "width": width},
            "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": self.fitted["mean"], "image_std": self.fitted["std"],
        })  # fmt: skip

    def examples(self, rows: pa.Table, ledger: Ledger) -> tuple[ImageExamples, dict[str, Any]]:
        """Every row, decoded once."""
        import torch

        pixels_NHWC = fitting.pixels(rows, self.fitted["image"])
        labels = self.answers(rows)
        ledger.take(len(labels))
        ledger.keep(len(labels))
        counts = {label: 0 for label in self.fitted["labels"]}
        for label in labels:
            counts[label] += 1
        pixels_NCHW = torch.from_numpy(np.ascontiguousarray(pixels_NHWC.transpose(0, 3, 1, 2)))
        label_N = torch.tensor([self.index[label] for label in labels], dtype=torch.int64)
        return ImageExamples(pixels_NCHW, label_N, rows["row_id"].to_pylist()), {
            "learnt": len(labels),
            "labels": counts,
        }

    def product(self) -> tuple[int, int, int]:
        """The first layer of an mlp; for convolutions and patches, as for a decoder."""
        hidden = self.start.base.get("configuration", {}).get("hidden_sizes")
        return (self.part.batch_size, math.prod(self.fitted["image"]), hidden[0]) if hidden else (512, 1024, 1024)

    def scaled(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Bytes to float32 with mean 0 and spread 1 over the training rows: one multiplication, one addition."""
        times, plus = self._scale
        return pixels_BCHW.float().mul_(times).add_(plus)

    def batch(self, examples: ImageExamples, rows: np.ndarray) -> Batch:
        import torch

        which_B = torch.from_numpy(rows)
        # index_select of whole rows copies memory; indexing an [N, C, H, W] goes pixel by pixel
        flat = torch.index_select(examples.flat, 0, which_B).view(-1, *examples.shape)
        return Batch(self.scaled(flat), torch.index_select(examples.label_N, 0, which_B), len(rows))

    def count(self, batch: Batch) -> int:
        return batch.count

    def decisions(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if self.device is None:  # to ask it of every batch would take as long as a layer
            self.device = next(model.parameters()).device
        logits_BK = model(batch.pixels_BCHW.to(self.device), return_dict=False)[0].float()
        return logits_BK, batch.label_B.to(self.device)

    def probes(self) -> list[Any]:
        """Names of patterns that `probe_outputs` draws: waves of many directions and lengths, no image of anybody's."""
        return [["wave", i] for i in range(PROBES)]

    def probe_outputs(self, model: nn.Module, probes: list[Any]) -> torch.Tensor:
        """Logits (float32) for each pattern: [N, K]."""
        import torch

        model.eval()
        device = next(model.parameters()).device
        pixels_NHWC = np.stack([fitting.wave(number, self.fitted["image"]) for _, number in probes])
        pixels_NCHW = torch.from_numpy(np.ascontiguousarray(pixels_NHWC.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            return model(self.scaled(pixels_NCHW).to(device)).logits.float().cpu()

    def pace(self, model: nn.Module) -> tuple[int, str]:
        """The probes, one after the other, a few times over."""
        probes = self.probes()
        for probe in probes * PACE:
            self.probe_outputs(model, [probe])
        return len(probes) * PACE, "images"

    def predict(self, model: nn.Module, rows: pa.Table, part: Evaluate, shots: pa.Table | None = None,
                batch_size: int | None = None) -> pa.Table:  # fmt: skip
        """The likeliest label of each image, its log-probability (nats) and those of all labels, in the order of `labels`.

        Raises:
            HermitcrabError: a reference that the model has no label for.
        """
        import pyarrow as pa

        references = self.answers(rows)
        if unknown := sorted(set(references) - self.index.keys()):
            raise HermitcrabError(
                f"the model has no label {unknown[0]!r}, which is a reference; it has: {', '.join(self.index)}"
            )
        log_p_NK = self.log_probabilities(
            model, fitting.pixels(rows, self.fitted["image"]), batch_size or part.batch_size
        )
        table: dict[str, Any] = {
            "row_id": rows["row_id"],
            "reference": pa.array(references, pa.string()),
            "prediction": pa.array([self.fitted["labels"][i] for i in log_p_NK.argmax(1)], pa.string()),
            "score": log_p_NK.max(1) if len(log_p_NK) else pa.array([], pa.float64()),
            "scores": log_p_NK.tolist(),
            "nll": [-log_p_NK[i, self.index[label]] for i, label in enumerate(references)],
        }
        if "document" in rows.column_names:
            table["document"] = rows["document"]
        return pa.table(table).replace_schema_metadata({"prompt_digest": self.asked(rows, part)})

    def answer(self, model: nn.Module, inputs: list[tuple[str, bytes]], part: Asking) -> list[dict[str, Any]]:
        """The likeliest label of each image, its log-probability (nats) and those of all; `changed` says what was done to an image
        that was not as those that the model learnt from."""
        pixels_NHWC, changed = self.as_learnt(self.fitted, inputs)
        return self.told_of(self.fitted, inputs, changed, self.log_probabilities(model, pixels_NHWC, 64))

    def question(self, model: nn.Module, one: tuple[str, bytes], part: Asking) -> Question:
        """What an explanation of the label of one image asks."""
        import torch

        from hermitcrab.tasks.explained import of_image

        model.eval()
        pixels_NHWC, _ = self.as_learnt(self.fitted, [one])
        pixels_CHW = torch.from_numpy(np.ascontiguousarray(pixels_NHWC[0].transpose(2, 0, 1)))
        scaled_CHW = self.scaled(pixels_CHW).to(next(model.parameters()).dtype)
        return of_image(model, scaled_CHW, pixels_NHWC[0], self.fitted["labels"])

    @classmethod
    def answer_by(
        cls, fitted: dict[str, Any], run: Callable[[np.ndarray], np.ndarray], inputs: list[tuple[str, bytes]]
    ) -> list[dict[str, Any]]:
        """The same without torch: `run` makes logits [N, K] of scaled pixels, float32 [N, C, H, W]."""
        pixels_NHWC, changed = cls.as_learnt(fitted, inputs)
        mean_C, std_C = np.float32(fitted["mean"]), np.float32(fitted["std"])
        scaled_NHWC = pixels_NHWC * (1 / (255 * std_C)) - mean_C / std_C
        logits_NK = run(np.ascontiguousarray(scaled_NHWC.transpose(0, 3, 1, 2), np.float32)).astype(np.float64)
        from scipy.special import log_softmax

        return cls.told_of(fitted, inputs, changed, log_softmax(logits_NK, axis=-1))

    @staticmethod
    def as_learnt(fitted: dict[str, Any], inputs: list[tuple[str, bytes]]) -> tuple[np.ndarray, list[list[str]]]:
        """Pixels of the size that was learnt, uint8 [N, H, W, C], and what was done to each image for it."""
        height, width, channels = fitted["image"]
        pixels, changed = [], []
        for name, data in inputs:
            found, told = decode(data, name, channels)
            if found.shape[:2] != (height, width):
                told = [*told, f"resized from {found.shape[0]} x {found.shape[1]}"]
            pixels.append(resized(found, height, width))
            changed.append(told)
        return np.stack(pixels), changed

    @staticmethod
    def told_of(
        fitted: dict[str, Any], inputs: list[tuple[str, bytes]], changed: list[list[str]], log_p_NK: np.ndarray
    ) -> list[dict[str, Any]]:
        return [
            {
                "input": name,
                "prediction": fitted["labels"][int(log_p_K.argmax())],
                "score": float(log_p_K.max()),
                "scores": dict(zip(fitted["labels"], log_p_K.tolist(), strict=True)),
                "changed": told,
            }
            for (name, _), told, log_p_K in zip(inputs, changed, log_p_NK, strict=True)
        ]

    def log_probabilities(self, model: nn.Module, pixels_NHWC: np.ndarray, size: int) -> np.ndarray:
        """float64 [N, K], `size` images at a time."""
        import torch

        model.eval()
        weight = next(model.parameters())
        found = [np.zeros((0, len(self.index)))]
        with torch.inference_mode(), progress("answers", len(pixels_NHWC), "images") as bar:
            for start in range(0, len(pixels_NHWC), size):
                part = np.ascontiguousarray(pixels_NHWC[start : start + size].transpose(0, 3, 1, 2))
                pixels_BCHW = self.scaled(torch.from_numpy(part)).to(weight)
                found.append(model(pixels_BCHW).logits.double().log_softmax(-1).cpu().numpy())
                bar.add(len(part))
        return np.concatenate(found)
