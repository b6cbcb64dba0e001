"""datatrove, a contender of data_pipeline.py: its own blocks, once a language, each stage a pass over files as its authors show it.

Exact copies are left to its MinHash, which finds them too. The time of `encode` is that of its last pass: it reads, drops and encodes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, LambdaFilter
from datatrove.pipeline.readers import JsonlReader, ParquetReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.typeshelper import Languages

LANGUAGES = {"en": Languages.english, "zh": Languages.mandarin_chinese}


def normalized(document) -> bool:
    import unicodedata  # the executor pickles this function with what it names

    document.text = unicodedata.normalize("NFKC", document.text)
    return True


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    corpus, kept, tokens, encode = Path(job["corpus"]), 0, 0, 0.0
    config = MinhashConfig(n_grams=5, num_buckets=16, hashes_per_bucket=8)
    for name, language in LANGUAGES.items():
        home = Path(job["out"]) / name

        def run(*pipeline, tasks: int = 1, home: Path = home) -> None:
            logs = home / "logs" / str(time.time_ns())
            LocalPipelineExecutor(list(pipeline), tasks=tasks, workers=1, logging_dir=str(logs)).run()

        run(
            ParquetReader(str(corpus.parent), glob_pattern=corpus.name),
            LambdaFilter(lambda document, name=name: document.metadata["lang"] == name),
            LambdaFilter(normalized),
            GopherRepetitionFilter(
                dup_line_frac=None, dup_para_frac=None, dup_line_char_frac=None, dup_para_char_frac=None, language=language
            ),
            GopherQualityFilter(
                min_doc_words=50, max_doc_words=100_000, min_avg_word_length=None, max_avg_word_length=None, max_symbol_word_ratio=None,
                max_bullet_lines_ratio=None, max_ellipsis_lines_ratio=None, max_non_alpha_words_ratio=None, min_stop_words=None,
                language=language,
            ),
            JsonlWriter(str(home / "clean"), compression=None),
        )  # fmt: skip
        run(JsonlReader(str(home / "clean")), MinhashDedupSignature(str(home / "signatures"), config, language))
        run(MinhashDedupBuckets(str(home / "signatures"), str(home / "buckets"), config=config), tasks=16)
        run(MinhashDedupCluster(str(home / "buckets"), str(home / "gone"), config=config))
        began = time.process_time()
        run(
            JsonlReader(str(home / "clean")),
            MinhashDedupFilter(str(home / "gone")),
            DocumentTokenizer(
                str(home / "tokens"),
                job["tokenizer"] + "/tokenizer.json",
                eos_token="<|endoftext|>",
                shuffle_documents=False,
            ),
        )
        encode += time.process_time() - began
        ends = [path.stat().st_size // 8 for path in (home / "tokens").rglob("*.index")]
        kept += sum(ends)
        tokens += sum(path.stat().st_size // 2 for path in (home / "tokens").rglob("*.ds"))
    print("\n" + json.dumps({"kept": kept, "tokens": tokens, "times": {"encode": encode}}))


if __name__ == "__main__":
    main()
