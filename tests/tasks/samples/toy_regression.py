from pathlib import Path

import numpy as np
from tasks.samples import Sample

RECIPE = """
name: sample
task: toy-regression
base: {path: scratch, architecture: {model_type: plane}, license: MIT, init_seed: 3}
data:
  train: {path: rows.csv, format: tabular, license: CC0-1.0, columns: {target: y}}
  split: {validation: 10, test: 20}
train: {method: full, optimizer: adam, learning_rate: 0.1, steps: 40, batch_size: 16, checkpoint_every: 6, validate_every: 10,
        final_dtype: float32, precision: float32, compile: "off"}
evaluate: {baselines: [mean], against: mean, resamples: 200}
"""


def sample(folder: Path) -> Sample:
    (folder / "r.yaml").write_text(RECIPE)
    draw = np.random.default_rng(0).normal(size=(120, 3)).round(4)
    rows = [f"{a},{b},{2 * a - b + 0.1 * e:.4f}" for a, b, e in draw]
    made = Sample(folder, "rows.csv", bad="1,2")
    made.write(["größe,b,y", *rows])
    made.nan = lambda: made.write([*made.lines(), "NaN,1,1"])
    return made
