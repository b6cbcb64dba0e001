from pathlib import Path

import numpy as np
from tasks.samples import Sample
from tiny import IMAGE_RECIPE, stripes, write_idx


def sample(folder: Path) -> Sample:
    def write(count: int, name: str = "train", **changed: int) -> None:
        pixels, labels = stripes(count, 1)
        for label, index in changed.items():
            labels[index] = int(label[1:])
        write_idx(folder, name, pixels, labels)

    def unseen() -> None:
        pixels, labels = stripes(12, 2)
        write_idx(folder, "held", pixels, labels)
        pixels, labels = stripes(300, 1)
        write_idx(folder, "train", pixels[labels < 2], labels[labels < 2])
        text = (folder / "r.yaml").read_text(encoding="utf-8")
        test = text[text.index("  train: {path: train-images") : text.index("  split:")].replace("train", "held")
        (folder / "r.yaml").write_text(
            text.replace("  split:", test.replace("held:", "test:") + "  split:"), encoding="utf-8"
        )

    write(300)
    recipe = IMAGE_RECIPE.replace("name: shapes", "name: sample").replace("steps: 60", "steps: 12")
    (folder / "r.yaml").write_text(recipe, encoding="utf-8")
    raw = folder / "train-labels"
    return Sample(
        folder, "train-images", label="垂直", unseen=unseen,
        spoil=lambda: raw.write_bytes(raw.read_bytes()[:-1] + b"\x07") and None,
        single=lambda: write(1),
        empty=lambda: write_idx(folder, "train", np.zeros((0, 8, 8), np.uint8), np.zeros(0, np.uint8)),
    )  # fmt: skip
