"""Export: a run or a model as a Hugging Face directory for transformers and vLLM, or as a peft adapter."""

from mmedexpert_jax.config import presets
from mmedexpert_jax.config.fields import Config, free, one_of

PRESETS = ("mini", "smollm2", "qwen2_vl_2b", "lingshu_7b", "medgemma_4b", "medgemma_27b")


def get_config(preset: str = "mini") -> Config:
    """Fields of the job under a preset."""
    config = presets.common("export", preset)
    # "model": adapters folded in, with processor; "adapter": the run's peft adapter
    config.format = one_of("model", "adapter")
    # directory to write, of a run in runs/export-<its name> unless workdir is set; empty: export/ of the run directory
    config.output = ""
    # hub repository to upload it to, "owner/name"; private where new; empty: none; needs HF_TOKEN
    config.push = free("")
    return config
