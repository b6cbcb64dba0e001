from pathlib import Path

from tasks.samples import Sample
from tiny import write_tokenizer

RECIPE = """
name: sample
task: text-classification
base: {path: scratch, license: MIT, init_seed: 3, tokenizer: words,
       architecture: {model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64,
                      max_position_embeddings: 64, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}
data:
  train: {path: rows.csv, format: text-label, license: CC0-1.0}
  split: {validation: 20, test: 40}
train: {method: full, optimizer: adam, learning_rate: 5e-3, steps: 24, batch_size: 12, checkpoint_every: 6, validate_every: 12,
        sequence_length: 48, final_dtype: float32, precision: float32, compile: "off"}
evaluate: {baselines: [majority, tfidf-logreg], against: majority, resamples: 200, noise_rows: 16}
"""


def sample(folder: Path) -> Sample:
    """Short reviews, two labels, one of them in another script."""
    good, bad = ("lovely", "warm", "clever", "bright"), ("dull", "cold", "silly", "gray")
    rows = []
    for n in range(240):
        words, label = (good, "很好") if n % 2 else (bad, "poor")
        rows.append(f"the film of day {n} is {words[n % 3]} and {words[(n // 2) % 4]} {'indeed ' * (n % 7)},{label}")
    write_tokenizer(folder / "words", [row.split(",")[0] for row in rows])
    (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
    made = Sample(folder, "rows.csv", bad="a text without a label", label="很好")
    made.write(["text,label", *rows])

    def unseen() -> None:
        (folder / "test.csv").write_text("text,label\na lovely film,很好\nso so,middling\n", encoding="utf-8")
        text = (folder / "r.yaml").read_text(encoding="utf-8")
        source = next(line for line in text.splitlines() if "path: rows.csv" in line)
        held = source.replace("train:", "test:").replace("rows.csv", "test.csv")
        (folder / "r.yaml").write_text(text.replace(source, f"{source}\n{held}"), encoding="utf-8")

    made.unseen = unseen
    return made
