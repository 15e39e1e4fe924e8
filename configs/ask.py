"""One question, with images, to any model that loads; the answer is written to the terminal as it comes."""

from ml_collections import ConfigDict

from mmedexpert_jax.config import presets

PRESETS = ("mini", "smollm2", "qwen2_vl_2b", "lingshu_7b", "medgemma_4b", "medgemma_27b")


def get_config(preset: str = "mini") -> ConfigDict:
    """Fields of the job under a preset."""
    config = presets.common("ask", preset)
    del config.tracker, config.data
    config.question = ""  # what is asked
    config.images = ()  # files that stand before the question
    config.temperature = 0.0  # 0: greedy
    config.top_p = 1.0  # mass that is sampled from; 1: all
    config.max_prompt_length = 1024 if preset == "mini" else 4096  # tokens
    config.max_new_tokens = 512 if preset == "mini" else 2048  # tokens of the answer at most
    return config
