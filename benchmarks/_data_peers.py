"""The environments of the data stages' peers.

data-juicer imports aiohttp without asking for it, and installs ray and ftfy while it runs."""

from __future__ import annotations

from _measure import Environment

TOKENIZERS = "tokenizers==0.23.3"
DATATROVE = Environment(
    "datatrove",
    ("datatrove[io]==0.10.1", "spacy==3.8.18", "jieba==0.42.1", "nltk==3.10.4", "regex==2026.11.19", "xxhash==3.6.0",
     "fasteners==0.20", "tldextract==5.4.0", "orjson==3.13.0", TOKENIZERS),
    shown=("datatrove", "spacy", "tokenizers"),
)  # fmt: skip
DATA_JUICER = Environment(
    "data-juicer",
    ("py-data-juicer==1.6.1", "aiohttp==3.14.5", "ray==2.60.0", "msgpack==1.2.4", "ftfy==6.3.1", TOKENIZERS),
    shown=("py-data-juicer", "datasets", "tokenizers"),
)
DATASETS = Environment(
    "datasets",
    ("datasets==5.2.0", "datasketch==2.0.0", "scipy==1.17.1", TOKENIZERS),
    shown=("datasets", "datasketch", "tokenizers"),
)
HAND = Environment(
    "hand", ("polars==2.1.0", "numba==0.68.1", "pyarrow==25.0.1", "fastokens==0.3.5", "scipy==1.17.1", TOKENIZERS),
    shown=("polars", "numba", "fastokens"),
)  # fmt: skip
