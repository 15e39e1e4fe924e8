"""DSA (section 4.1): one LoRA expert per specialty, by supervised fine-tuning on its reasoning traces."""

from mmedexpert_jax.config import presets
from mmedexpert_jax.config.fields import SPECIALTIES, Config, Field, free, one_of

PRESETS = (
    "mini",
    "smollm2",
    "qwen2_vl_2b",
    "lingshu_7b",
    "medgemma_4b",
    "medgemma_27b",
    "qwen2_vl_2b_lora",
    "lingshu_7b_lora",
)


def get_config(preset: str = "mini") -> Config:
    """Fields of the job under a preset."""
    config = presets.training("dsa", preset)
    # "all": four experts in turn; AM, CAH, BS or CSI: that one; "mixed": pooled data
    config.specialty = one_of("all", *SPECIALTIES, "mixed")
    config.batch_size = Field(1, low=1)  # cases per forward pass; appendix B
    config.accumulation = Field(8, low=1)  # forward passes per optimizer step; appendix B
    config.max_new_tokens = Field(1024, low=1)  # tokens of a trace and its answer; a longer one is refused
    config.buckets = Field(4, low=1)  # padded sizes of a micro-batch; more of them pad less and compile more
    # capacities of packed completions, each compiled when it is first met; 0: rows stay padded
    config.packing = free(0)

    if preset == "mini":
        config.lr = 2e-3
        config.batch_size = 4
        config.max_prompt_length = 512
        config.max_new_tokens = 128
        config.buckets = 1
        config.eval.split = "test"
    elif preset == "smollm2":  # ten steps teach the format of answers; one expert took 290 CPU seconds
        config.steps = 10
        config.lr = 5e-4
        config.batch_size = 2
        config.accumulation = 2
        config.max_prompt_length = 512
        config.max_new_tokens = 128
        config.buckets = 1
        config.eval.limit = 16
        config.eval.batch_size = 16
    elif preset.endswith("_lora"):
        config.lr = presets.LORA_RATE
    return config
