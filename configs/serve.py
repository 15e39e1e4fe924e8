"""An OpenAI-compatible endpoint on this machine, over any model that loads: base, run, adapters on one base."""

from ml_collections import ConfigDict

from mmedexpert_jax.config import presets

PRESETS = ("mini", "smollm2", "qwen2_vl_2b", "lingshu_7b", "medgemma_4b", "medgemma_27b")


def get_config(preset: str = "mini") -> ConfigDict:
    """Fields of the job under a preset."""
    config = presets.common("serve", preset)
    del config.tracker, config.data
    config.name = ""  # of the model in requests; empty: the last part of model.path
    config.adapters = ()  # "name=path" of further adapters on the same base, each served under its name
    config.host = "127.0.0.1"  # address to listen on; anything but loopback is plain HTTP in your network
    config.port = 8000  # vLLM's; 0: any that is free
    config.key_env = ""  # environment variable with the key that requests must carry; empty: none
    config.rows = 16  # samples that decode together, of each name
    config.queue = 256  # choices that may wait; a request beyond them gets status 429
    config.max_prompt_length = 1024 if preset == "mini" else 4096  # tokens; a longer prompt gets status 400
    config.max_new_tokens = 512 if preset == "mini" else 2048  # tokens of an answer at most
    return config
