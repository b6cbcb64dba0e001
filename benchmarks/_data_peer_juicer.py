"""data-juicer, a contender of data_pipeline.py: the nearest of its own operators, then a BPE, for it writes no token files.

Its rules are not the same ones (no most frequent n-gram), its near duplicates are of characters for both languages, as its authors advise
where Chinese is among them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

CONFIG = """\
project_name: corpus
dataset_path: {corpus}
export_path: {out}/kept.jsonl
work_dir: {out}/work
np: 1
use_cache: false
open_tracer: false
text_keys: text
process:
  - fix_unicode_mapper: {{normalization: NFKC}}
  - text_length_filter: {{min_len: 200, max_len: 1000000}}
  - words_num_filter: {{min_num: 20}}
  - word_repetition_filter: {{rep_len: 5, max_ratio: 0.3}}
  - character_repetition_filter: {{rep_len: 10, max_ratio: 0.5}}
  - document_deduplicator: {{}}
  - document_minhash_deduplicator:
      {{tokenization: character, window_size: 5, num_permutations: 128,
       jaccard_threshold: {threshold}, num_bands: 16, num_rows_per_band: 8}}
"""


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    out = Path(job["out"])
    (out / "config.yaml").write_text(CONFIG.format(**job))
    process = Path(sys.executable).with_name("dj-process")
    subprocess.run([sys.executable, str(process), "--config", str(out / "config.yaml")], check=True, stdout=sys.stderr)
    from tokenizers import Tokenizer

    began = time.process_time()
    coder, tokens, kept = Tokenizer.from_file(job["tokenizer"] + "/tokenizer.json"), 0, 0
    with open(out / "kept.jsonl") as lines, open(out / "train.bin", "wb") as file:
        for line in lines:
            ids = coder.encode(json.loads(line)["text"], add_special_tokens=False).ids
            file.write(np.array([*ids, 0], np.uint16).data)
            tokens, kept = tokens + len(ids) + 1, kept + 1
    print("\n" + json.dumps({"kept": kept, "tokens": tokens, "times": {"encode": time.process_time() - began}}))


if __name__ == "__main__":
    main()
