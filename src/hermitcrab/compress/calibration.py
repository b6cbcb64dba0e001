"""What training rows tell of a language model's weights: which inputs each of its matrices is multiplied with.

Rows of the training split only: what is measured afterwards was not looked at.

Shapes: T tokens, C columns (inputs of a matrix).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hermitcrab.progress import progress

if TYPE_CHECKING:
    import torch

    from hermitcrab.compress import Source


def documents(source: Source) -> Iterator[list[int]]:
    """Token ids of each calibration row, prompt and answer, as they were trained on."""
    from hermitcrab.tasks import make_task

    task: Any = make_task(source.task, source.start, source.train)
    for document in task.documents(source.calibration):
        yield document.ids.tolist()[: source.train.sequence_length]


def model_of(source: Source) -> Any:
    """The uncompressed model, in float32."""
    import torch

    from hermitcrab.tasks import make_task

    return make_task(source.task, source.start, source.train).model(torch.float32)


def products(model: Any, ids: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """For each named linear module the sum over all tokens of x xT, float64 [C, C]."""
    import torch

    found: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x_TC = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            product_CC = (x_TC.T @ x_TC).double()
            found[name] = found[name] + product_CC if name in found else product_CC

        return hook

    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_pre_hook(watch(name)) for name in names]
    try:
        with torch.inference_mode(), progress("calibration", len(ids), "rows") as bar:
            for row in ids:
                model(input_ids=torch.tensor([row]), use_cache=False, logits_to_keep=1)
                bar.add()
    finally:
        for hook in hooks:
            hook.remove()
    return found
