from pathlib import Path

import numpy as np
from tasks.samples import Sample

RECIPE = """
name: sample
task: time-series-forecasting
base: {path: scratch, license: MIT, init_seed: 3,
       architecture: {model_type: patchtst, context_length: 16, patch_length: 4, patch_stride: 4, d_model: 8, num_hidden_layers: 1,
                      num_attention_heads: 2, ffn_dim: 16, norm_type: layernorm}}
data:
  train: {path: rows.csv, format: series, license: CC0-1.0, columns: {time: Date}, windows: {context: 16, horizon: 3}}
  clean: []
  split: {by: time, validation: 6, test: 16}
train: {method: full, optimizer: adam, learning_rate: 1e-2, steps: 20, batch_size: 16, checkpoint_every: 6, validate_every: 10,
        final_dtype: float32, precision: float32, compile: "off"}
evaluate: {baselines: [naive, seasonal-naive], against: naive, resamples: 200}
"""


def sample(folder: Path) -> Sample:
    """Two series that walk, one of them with a season."""
    draw = np.random.default_rng(0)
    walk = 100 + draw.normal(size=(150, 2)).cumsum(axis=0)
    walk[:, 1] += 5 * np.sin(np.arange(150) * 2 * np.pi / 7)
    days = np.arange("2020-01-01", "2020-05-30", dtype="datetime64[D]")
    made = Sample(folder, "rows.csv", bad="2021-01-01,much,1", survives=True)
    made.write(["Date,股票,B", *(f"{day},{a:.3f},{b:.3f}" for day, (a, b) in zip(days, walk, strict=True))])
    (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
    made.nan = lambda: made.write([*made.lines(), "2021-01-02,NaN,3", *(f"2021-02-{d:02},1,{d}" for d in range(1, 29))])
    return made
