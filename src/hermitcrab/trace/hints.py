"""The role that a tensor's name suggests. A hint counts where the shapes allow it."""

from __future__ import annotations

import re
from functools import lru_cache

HINTS = {
    "qkv": r"qkv|c_attn|query_key_value|in_proj",
    "gate_up": r"gate_up|gate_and_up|w13",
    "q": r"q_proj|query|attn_q|wq|q_lin|to_q|q",
    "k": r"k_proj|key|attn_k|wk|k_lin|to_k|k",
    "v": r"v_proj|value|attn_v|wv|v_lin|to_v|v",
    "o": r"o_proj|out_proj|attn_output|wo|out_lin|to_out|attention\.dense|"
    r"self_attention\.dense|attn\.proj|attn\.c_proj|attention\.output\.dense|o",
    "gate": r"gate_proj|ffn_gate(_exps)?|w1|wi_0|fc1_g",
    "up": r"up_proj|ffn_up(_exps)?|w3|wi_1|fc1(_x)?|c_fc|intermediate\.dense|dense_h_to_4h|lin1|linear1|fc_in|up|wi",
    "down": r"down_proj|ffn_down(_exps)?|w2|fc2|mlp\.c_proj|output\.dense|dense_4h_to_h|lin2|linear2|fc_out|down",
    "router": r"router|block_sparse_moe\.gate|mlp\.gate|ffn_gate_inp|gate",
}  # fmt: skip
_ANCHORED = {role: re.compile(rf"(?:^|[./_])((?:{text}))$", re.I) for role, text in HINTS.items()}


@lru_cache(4096)  # each name is asked about several times
def hint(name: str) -> str | None:
    """The role that a name suggests; the longest match wins."""
    stem = re.sub(r"[._]?(weight|kernel|_q|_quantized)$", "", name)
    found = [(len(m[1]) if m.lastindex else 0, role) for role, p in _ANCHORED.items() if (m := p.search(stem))]
    return max(found)[1] if found else None
