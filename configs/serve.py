"""An OpenAI-compatible endpoint on this machine, over any model that loads: base, run, adapters on one base."""

from mmedexpert_jax.config import presets
from mmedexpert_jax.config.fields import Config, Field, free

PRESETS = ("mini", "smollm2", "qwen2_vl_2b", "lingshu_7b", "medgemma_4b", "medgemma_27b")


def get_config(preset: str = "mini") -> Config:
    """Fields of the job under a preset."""
    config = presets.common("serve", preset)
    del config.tracker, config.data
    config.name = ""  # of the model in requests; empty: the last part of model.path
    config.adapters = ()  # "name=path" of further adapters on the same base, each served under its name
    config.host = "127.0.0.1"  # address to listen on; anything but loopback is plain HTTP in your network
    config.port = Field(8000, high=65535)  # vLLM's; 0: any that is free
    config.key_env = ""  # environment variable with the key that requests must carry; empty: none
    config.rows = free(16, low=1)  # samples that decode together, of each name
    config.queue = free(256, low=1)  # choices that may wait; a request beyond them gets status 429
    # tokens; a longer prompt gets status 400
    config.max_prompt_length = Field(1024 if preset == "mini" else 4096, low=1)
    config.max_new_tokens = Field(512 if preset == "mini" else 2048, low=1)  # tokens of an answer at most
    return config
