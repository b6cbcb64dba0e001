"""The part of a recipe that asks for smaller models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from hermitcrab.recipe.parts import Count, Part, one_or_many

GgufType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "Q3_K", "Q2_K",
    "Q8_0-calibrated", "Q6_K-calibrated", "Q5_K-calibrated", "Q5_1-calibrated", "Q5_0-calibrated", "Q4_K-calibrated", "Q4_1-calibrated",
    "Q4_0-calibrated", "IQ4_NL-calibrated", "Q3_K-calibrated", "Q2_K-calibrated",
]  # fmt: skip
OpenvinoType = Literal["f32", "f16", "bf16", "int8", "int4", "int4-calibrated"]
OnnxType = Literal["f32", "int8", "int8-static"]


class Heal(Part):
    """A short training after pruning, on the training rows."""

    steps: Annotated[int, Field(ge=0)] = 200
    """Optimizer steps; 0: none."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    batch_size: Count = 8
    distill: bool = False
    """Also learn the distributions of the model that was not cut."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Of both distributions, where `distill` is on (Hinton et al. 2015, arXiv:1503.02531)."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the loss on the labels themselves, where `distill` is on."""


class Prune(Part):
    """A smaller model cut out of the derived one, and healed."""

    method: Literal["magnitude", "width", "depth"] = "magnitude"
    """`magnitude`: small weights become zero (and stay in the file); `width`: neurons or heads go; `depth`: a block of layers goes."""
    keep: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], BeforeValidator(one_or_many), Field(min_length=1)] = [
        0.75
    ]
    """Share that stays: of weights, of neurons or heads, or of layers. A list makes one model each."""
    over: Literal["tensor", "model"] = "tensor"
    """Of `magnitude`: the share in every matrix, or over all of them together."""
    by: Literal["weights", "activations"] = "weights"
    """Of `magnitude`: how large a weight is, or that times what calibration rows give to its input (Wanda, arXiv:2306.11695)."""
    pattern: Literal["any", "2:4"] = "any"
    """Of `magnitude`: `2:4` keeps two of each four neighbors, the form that sparse tensor cores read; `keep` is .5 then."""
    parts: Annotated[list[Literal["neurons", "heads"]], Field(min_length=1)] = ["neurons"]
    """Of `width`: what goes, neurons of the MLPs or attention heads by key-value group."""
    heal: Heal = Heal()

    @model_validator(mode="after")
    def _keys_are_of_the_method(self) -> Prune:
        given = {
            key
            for key, f in type(self).model_fields.items()
            if getattr(self, key) != f.get_default(call_default_factory=True)
        }
        for key, method in (("over", "magnitude"), ("by", "magnitude"), ("pattern", "magnitude"), ("parts", "width")):
            if key in given and self.method != method:
                raise ValueError(f"{key} is for method: {method}. Received: method={self.method}")
        if self.pattern == "2:4" and given & {"keep", "over"}:
            raise ValueError(
                f"pattern 2:4 keeps two of four; leave keep and over out. Received: keep={self.keep}, over={self.over}"
            )
        return self


class Distill(Part):
    """A smaller student that learns the derived model's distributions on the training rows."""

    start: Literal["depth", "new"] = "depth"
    """What the student starts from: evenly chosen layers of the derived model, or new weights."""
    architecture: dict[str, Any] = {}
    """Keys of the derived model's configuration that the student has otherwise (`{num_hidden_layers: 12}`)."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Of both distributions (Hinton et al. 2015, arXiv:1503.02531)."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the loss on the labels themselves; the rest is that on the teacher's distributions."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    steps: Count | None = None
    """Optimizer steps; overrides epochs."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    batch_size: Count = 8


class Target(Part):
    max_loss: Annotated[float, Field(gt=0)]
    """What a smaller model may lose at most of the deciding metric (absolute). Where the interval of the paired difference does
    not show that it loses less, the run stops."""
    max_kl: Annotated[float, Field(gt=0)] | None = None
    """Mean KL (nats) on calibration rows that the tensors of a GGUF type may cost: those that hurt most stay wider until it is
    met. null: until validation rows lose no more than `max_loss`."""


class Compress(Part):
    gguf: list[GgufType] = []
    """Also ship the model as GGUF in these types, each compared with the uncompressed model. Empty: none. `-calibrated`: rounded by
    what training rows are multiplied with (GPTQ, or llama.cpp's importance matrix for its K-quants)."""
    openvino: list[OpenvinoType] = []
    """The same as OpenVINO's intermediate representation."""
    onnx: list[OnnxType] = []
    """The same as ONNX."""
    prune: Prune | None = None
    distill: Distill | None = None
    calibration_rows: Count = 64
    """Training rows that calibration and sensitivity are measured on (those with the smallest ids)."""
    target: Target | None = None
    rows: Count | None = None
    """Test rows that each compressed model is asked; null: all that `evaluate` asked."""

    @property
    def anything(self) -> bool:
        """Is any smaller form asked for?"""
        return bool(self.gguf or self.openvino or self.onnx or self.prune or self.distill)

    @model_validator(mode="after")
    def _types_differ(self) -> Compress:
        for name in ("gguf", "openvino", "onnx"):
            given = getattr(self, name)
            if len(set(given)) != len(given):
                raise ValueError(f"each type is given once. Received: {name}={given}")
        if self.prune and len(set(self.prune.keep)) != len(self.prune.keep):
            raise ValueError(f"each share is given once. Received: prune.keep={self.prune.keep}")
        for name in ("rows", "target"):
            if getattr(self, name) is not None and not self.anything:
                raise ValueError(
                    f"{name} is for compressed models, and none is asked for. Received: {name}={getattr(self, name)}"
                )
        return self
