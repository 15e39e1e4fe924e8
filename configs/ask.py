"""One question, with images, to any model that loads; the answer is written to the terminal as it comes."""

from mmedexpert_jax.config import presets
from mmedexpert_jax.config.fields import Config, Field, one_of

PRESETS = ("mini", "smollm2", "qwen2_vl_2b", "lingshu_7b", "medgemma_4b", "medgemma_27b")


def get_config(preset: str = "mini") -> Config:
    """Fields of the job under a preset."""
    config = presets.common("ask", preset)
    del config.tracker, config.data
    config.question = ""  # what is asked
    config.images = ()  # files that stand before the question
    # of the files, what to see: range, full, a preset such as lung, or centre,width; empty: the file's own
    config.window = ""
    config.slices = 0  # so many of their slices or frames, at even distances; 0: they hold one
    config.plane = one_of("", "axial", "coronal", "sagittal")  # of volumes; empty: as they lie
    config.temperature = 0.0  # 0: greedy
    config.top_p = Field(1.0, above=0, high=1)  # mass that is sampled from; 1: all
    config.max_prompt_length = Field(1024 if preset == "mini" else 4096, low=1)  # tokens
    config.max_new_tokens = Field(512 if preset == "mini" else 2048, low=1)  # tokens of the answer at most
    return config
