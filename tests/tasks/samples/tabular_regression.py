from pathlib import Path

import numpy as np
from tasks.samples import Sample
from tasks.samples.tabular_classification import RECIPE


def sample(folder: Path) -> Sample:
    draw = np.random.default_rng(0)
    x, kind = draw.normal(size=200).round(3), draw.integers(0, 2, 200)
    y = 3 * x + 5 * kind + 0.2 * draw.normal(size=200)
    rows = [f"{a},{'甲' if k else 'b'},{b:.3f}" for a, k, b in zip(x, kind, y, strict=True)]
    recipe = RECIPE.replace("tabular-classification", "tabular-regression").replace(", noise_rows: 16", "")
    for old, new in (
        (
            "[prior, logistic-regression, lightgbm], against: prior",
            "[mean, linear-regression, lightgbm-regressor], against: mean",
        ),
        ("target: Status", "target: y"),
        (
            "ft-transformer, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, dropout: 0.0",
            "mlp, hidden_sizes: [16]",
        ),
    ):
        recipe = recipe.replace(old, new)
    (folder / "r.yaml").write_text(recipe, encoding="utf-8")
    made = Sample(folder, "rows.csv", bad="1,2", survives=True)
    made.write(["x,kind,y", *rows])
    made.nan = lambda: made.write([*made.lines(), "NaN,b,1.5"])
    return made
