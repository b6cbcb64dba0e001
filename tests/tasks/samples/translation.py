from pathlib import Path

from tasks.samples import Sample

RECIPE = """
name: sample
task: translation
base: {path: scratch, license: MIT, init_seed: 3,
       architecture: {model_type: marian, vocab_size: 300, d_model: 16, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2,
                      decoder_attention_heads: 2, encoder_ffn_dim: 32, decoder_ffn_dim: 32, max_position_embeddings: 48, dropout: 0.0}}
data:
  train: {path: rows.tsv, format: text-pair, license: CC0-1.0, columns: {source_text: en, target_text: zh}}
  split: {validation: 10, test: 20}
train: {method: full, optimizer: adam, learning_rate: 1e-2, steps: 20, batch_size: 16, checkpoint_every: 6, validate_every: 10,
        sequence_length: 48, final_dtype: float32, precision: float32, compile: "off"}
evaluate: {baselines: [nearest-segment], against: nearest-segment, resamples: 200, max_new_tokens: 8}
"""


def sample(folder: Path) -> Sample:
    """Short orders to a machine, in two languages."""
    verbs = {"open": "打开", "close": "关闭", "save": "保存", "print": "打印"}
    nouns = {"file": "文件", "page": "页面", "table": "表格", "chart": "图表"}
    made = Sample(folder, "rows.tsv", bad="a source and nothing else")
    made.write(["en\tzh"] + [f"{v} {n} {i}\t{verbs[v]}{nouns[n]} {i}" for i in range(10) for v in verbs for n in nouns])
    (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
    return made
