"""mlp: fully connected layers on the pixels of an image, the net that every textbook begins with (784-128-64-10 on MNIST).

Rumelhart, Hinton & Williams 1986, "Learning representations by back-propagating errors", doi:10.1038/323533a0. Weights start as
torch.nn.Linear starts them (He et al. 2015, arXiv:1502.01852, uniform).

Shapes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput

from hermitcrab.models.architectures.mlp_config import DEFAULTS

LAYERS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU}


class MLPConfig(PretrainedConfig):
    model_type = "mlp"

    def __init__(
        self,
        image_size: list[int] | None = None,
        num_channels: int = 1,
        hidden_sizes: list[int] | None = None,
        activation: str = DEFAULTS["activation"],
        **more: Any,
    ):
        self.image_size = list(image_size or (28, 28))  # height, width
        self.num_channels = num_channels
        self.hidden_sizes = list(DEFAULTS["hidden_sizes"] if hidden_sizes is None else hidden_sizes)
        self.activation = activation
        super().__init__(**more)


class MLPForImageClassification(PreTrainedModel):
    config_class = MLPConfig
    main_input_name = "pixel_values"
    base_model_prefix = "layers"

    def __init__(self, config: MLPConfig):
        super().__init__(config)
        height, width = config.image_size
        sizes = [config.num_channels * height * width, *config.hidden_sizes]
        layers: list[nn.Module] = []
        for taken, given in pairwise(sizes):
            layers += [nn.Linear(taken, given), LAYERS[config.activation]()]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(sizes[-1], config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)

    def forward(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None, **unused: Any
    ) -> ImageClassifierOutput | tuple[torch.Tensor]:
        """pixel_values: float [B, C, H, W] -> logits [B, K]."""
        logits_BK = self.classifier(self.layers(pixel_values.flatten(1)))
        return (logits_BK,) if return_dict is False else ImageClassifierOutput(logits=logits_BK)


def register() -> None:
    """Let transformers' Auto classes know the architecture. Again and again is as good as once."""
    AutoConfig.register("mlp", MLPConfig, exist_ok=True)
    AutoModelForImageClassification.register(MLPConfig, MLPForImageClassification, exist_ok=True)
