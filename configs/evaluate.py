"""Evaluation (section 5) on held-out cases: accuracy by specialty, paradigm and modality, with intervals."""

from ml_collections import ConfigDict

from mmedexpert_jax.launch import presets

PRESETS = ("mini", "qwen2_vl_2b", "lingshu_7b")


def get_config(preset: str = "mini") -> ConfigDict:
    """Fields of the job under a preset."""
    config = presets.common("evaluate", preset)
    config.compare = ()  # further models, "path" or "name=path", each also against model.path, paired over cases
    config.split = "test"  # split of data.path
    config.num_samples = 1  # answers per case
    config.temperature = 0.0  # of sampling; 0: greedy
    config.paradigm = ""  # guideline in the prompt: a paradigm, "all": each that applies, or empty: none
    config.max_prompt_length = 1024  # tokens, images included; a longer prompt is refused
    config.max_new_tokens = 1024  # tokens of an answer; appendix B
    config.batch_size = 16  # prompts decoded together
    config.scorer = "strict"  # how an answer is read: "strict" or "medevalkit"

    if preset == "mini":
        config.max_prompt_length = 512
        config.max_new_tokens = 96
        config.batch_size = 64
    return config
