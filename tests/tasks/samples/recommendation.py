from pathlib import Path

import numpy as np
from tasks.samples import Sample

RECIPE = """
name: sample
task: recommendation
base: {path: scratch, architecture: {model_type: two-tower, hidden_size: 8, dropout: 0.0}, license: MIT, init_seed: 3}
data:
  train: {path: rows.csv, format: interaction, license: CC0-1.0, columns: {user: who, item: what, time: at}, features: [genres, year]}
  clean: []
  split: {by: time, within: user, validation: 40, test: 80}
train: {method: full, optimizer: adam, learning_rate: 2e-2, steps: 20, batch_size: 64, checkpoint_every: 6, validate_every: 10,
        final_dtype: float32, precision: float32, compile: "off"}
evaluate: {baselines: [popularity, item-knn, implicit-als], against: popularity, resamples: 200}
"""


def sample(folder: Path) -> Sample:
    """Users who like one of three genres, and films of which a few come only at the end."""
    draw = np.random.default_rng(0)
    genres = ("Drama|Krimi", "喜剧", "Horror")
    lines = ["who,what,rating,at,genres,year"]
    for user in range(40):
        likes = user % 3
        films = draw.choice(60, 12, replace=False)
        for place, film in enumerate(films):
            film = 60 + film if place == 11 and user % 2 else film  # of which nobody knows yet
            rating = 5 if film % 3 == likes else int(draw.integers(1, 4))
            lines.append(f"user {user},电影 {film},{rating},{100 * place + user},{genres[film % 3]},{1950 + film}")
    (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
    made = Sample(folder, "rows.csv", bad="user 1,film,excellent,1,Drama,1999", survives=True)
    made.write(lines)
    made.nan = lambda: made.write([*made.lines(), "user 1,电影 3,NaN,1,Horror,NaN"])
    return made
