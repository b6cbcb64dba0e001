"""The child that has openvino-genai build a graph: names in it count what its process did before, so each gets a fresh one."""

from __future__ import annotations

import sys


def main() -> None:
    """Leaves `openvino_model.xml` and what belongs to it beside the GGUF file that is named."""
    import openvino_genai as genai

    genai.LLMPipeline(sys.argv[1], "CPU", {"enable_save_ov_model": True})


if __name__ == "__main__":
    main()
