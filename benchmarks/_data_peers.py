"""The environments of the data stages' peers. data-juicer does not import without aiohttp, which it does not ask for."""

from __future__ import annotations

from _measure import Environment

TOKENIZERS = "tokenizers==0.23.3"
DATATROVE = Environment(
    "datatrove",
    ("datatrove[io]==0.10.1", "spacy==3.8.7", "jieba==0.42.1", "nltk==3.9.2", "regex==2025.11.3", "xxhash==3.6.0", "fasteners==0.20",
     "tldextract==5.3.0", TOKENIZERS),
    shown=("datatrove", "spacy", "tokenizers"),
)  # fmt: skip
DATA_JUICER = Environment(
    "data-juicer", ("py-data-juicer==1.6.1", "aiohttp==3.13.2", TOKENIZERS), shown=("py-data-juicer", "datasets", "tokenizers")
)
DATASETS = Environment(
    "datasets", ("datasets==5.2.0", "datasketch==2.0.0", "scipy==1.16.3", TOKENIZERS), shown=("datasets", "datasketch", "tokenizers")
)
HAND = Environment(
    "hand", ("polars==2.1.0", "numba==0.62.1", "pyarrow==22.0.0", "fastokens==0.3.5", "scipy==1.16.3", TOKENIZERS),
    shown=("polars", "numba", "fastokens"),
)  # fmt: skip
