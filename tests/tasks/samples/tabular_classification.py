from pathlib import Path

import numpy as np
from tasks.samples import Sample

RECIPE = """
name: sample
task: tabular-classification
base: {path: scratch, license: MIT, init_seed: 3,
       architecture: {model_type: ft-transformer, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, dropout: 0.0}}
data:
  train: {path: rows.csv, format: tabular, license: CC0-1.0, columns: {target: Status}}
  split: {validation: 20, test: 40}
train: {method: full, optimizer: adam, learning_rate: 1e-2, steps: 20, batch_size: 16, checkpoint_every: 6, validate_every: 10,
        final_dtype: float32, precision: float32, compile: "off"}
evaluate: {baselines: [prior, logistic-regression, lightgbm], against: prior, resamples: 200, noise_rows: 16}
"""


def sample(folder: Path) -> Sample:
    """Rows as those of the credit data: numbers with a long tail, some missing, and categories."""
    draw = np.random.default_rng(0)
    income, home = draw.lognormal(5, 1, 240).round(2), draw.integers(0, 3, 240)
    risky = income / 300 + 0.5 * home + 0.3 * draw.normal(size=240) < 1
    cells = ["" if n % 17 == 0 else str(value) for n, value in enumerate(income)]
    homes = np.array(["rent", "own", "父母"])[home]
    rows = [
        f"{cell},{where},{'有风险' if bad else 'good'}" for cell, where, bad in zip(cells, homes, risky, strict=True)
    ]
    (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
    made = Sample(folder, "rows.csv", bad="1,2", label="有风险", survives=True)
    made.write(["Income,Home,Status", *rows])

    def unseen() -> None:
        (folder / "test.csv").write_text("Income,Home,Status\n5,own,good\n7,rent,maybe\n", encoding="utf-8")
        text = (folder / "r.yaml").read_text(encoding="utf-8")
        source = next(line for line in text.splitlines() if "path: rows.csv" in line)
        held = source.replace("train:", "test:").replace("rows.csv", "test.csv")
        (folder / "r.yaml").write_text(text.replace(source, f"{source}\n{held}"), encoding="utf-8")

    made.unseen = unseen
    made.nan = lambda: made.write([*made.lines(), "NaN,own,good", "nan,rent,有风险"])
    return made
