"""The table of docs/families.md, made from the families that tests try. `python -m tests.families_table` writes it."""

from pathlib import Path

from guards.model.families import VLLM_FAMILIES
from tests.models import CONFIGS, EXPERTS, NOT_TRIED, RECURRENT, VLLM_CLASSES

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
BEGIN, END = "<!-- families: written by `python -m tests.families_table` -->", "<!-- end of families -->"
NAMES = {
    "llama": "Llama, SmolLM2",
    "mistral": "Mistral",
    "ministral": "Ministral",
    "ministral3": "Mistral 3.x",
    "phi3": "Phi-3, Phi-4",
    "qwen3_5_text": "Qwen3.5",
    "qwen3_5_moe_text": "Qwen3.5-MoE",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "gemma4_text": "Gemma 4",
    "smollm3": "SmolLM3",
    "granite": "Granite 3",
    "granitemoehybrid": "Granite 4",
    "glm": "GLM-4 (glm)",
    "glm4": "GLM-4 (glm4)",
    "glm4_moe": "GLM-4.5 to 4.7",
    "lfm2": "LFM2",
    "olmo2": "OLMo-2",
    "olmo3": "OLMo-3",
    "olmoe": "OLMoE",
    "opt": "OPT",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia",
    "gpt_oss": "gpt-oss",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "qwen2_moe": "Qwen2-MoE",
    "qwen3_moe": "Qwen3-MoE",
    "mixtral": "Mixtral",
}


def rows() -> list[tuple[str, ...]]:
    """A row for each family: its names, what guards read, and on which engines."""
    found = []
    for kind in (*CONFIGS, *EXPERTS):
        vllm = VLLM_CLASSES.get(kind)
        assert vllm is None or vllm in VLLM_FAMILIES
        found.append(
            (
                NAMES[kind],
                f"`{kind}`",
                "key, residual" if kind in CONFIGS else "residual; key where a layer is dense",
                "calibrates only" if kind in RECURRENT else "yes",
                f"`{vllm}`{', not tried' if kind in NOT_TRIED else ''}" if vllm else "no",
            )
        )
    return sorted(found, key=lambda row: row[0].lower())


def table() -> str:
    """All rows as Markdown."""
    head = ("family", "`model_type`", "what detectors read", "embedded engine", "vLLM's class")
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows()))


if __name__ == "__main__":
    text = PAGE.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")
