"""DSA (section 4.1): one LoRA expert per specialty, by supervised fine-tuning on its reasoning traces."""

from ml_collections import ConfigDict

from mmedexpert_jax.config import presets

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


def get_config(preset: str = "mini") -> ConfigDict:
    """Fields of the job under a preset."""
    config = presets.training("dsa", preset)
    config.specialty = "all"  # "all": four experts in turn; AM, CAH, BS or CSI: that one; "mixed": pooled data
    config.batch_size = 1  # cases per forward pass; appendix B
    config.accumulation = 8  # forward passes per optimizer step; appendix B
    config.max_new_tokens = 1024  # tokens of a trace and its answer; a longer one is refused
    config.buckets = 4  # padded sizes of a micro-batch; more of them pad less and compile more
    config.packing = 0  # capacities of packed completions, each compiled when it is first met; 0: rows stay padded

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
