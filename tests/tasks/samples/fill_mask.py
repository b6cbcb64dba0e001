from pathlib import Path

from tasks.samples import Sample

RECIPE = """
name: sample
task: fill-mask
base: {path: scratch, license: MIT, init_seed: 3,
       architecture: {model_type: bert, vocab_size: 300, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
                      intermediate_size: 32, max_position_embeddings: 48, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}
data:
  train: {path: rows.csv, format: text, license: CC0-1.0}
  split: {validation: 10, test: 20}
train: {method: full, optimizer: adam, learning_rate: 1e-2, steps: 20, batch_size: 16, checkpoint_every: 6, validate_every: 10,
        sequence_length: 48, final_dtype: float32, precision: float32, compile: "off"}
evaluate: {resamples: 200}
"""


def sample(folder: Path) -> Sample:
    """Short sentences, some in another script."""
    made = Sample(folder, "rows.csv", bad="a text,and a cell too many")
    seas = ("calm", "gray", "warm", "海")
    made.write(["text", *(f"on day {i} the sea is {seas[i % 4]} and the crab walks {seas[i % 3]}" for i in range(120))])
    (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
    return made
