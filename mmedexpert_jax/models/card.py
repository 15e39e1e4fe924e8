"""README.md of a saved model: the Hub's model card, with what can be known from the weights and their origin."""

import json
import math
import re
from pathlib import Path

from mmedexpert_jax.models.config import FAMILIES, ModelConfig
from mmedexpert_jax.models.network import tensor_shapes

_TITLES = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL"}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def model_card(config: ModelConfig, dtype: str, origin: str = "") -> str:
    """Markdown with the Hub's front matter.

    Args:
        config: the architecture.
        dtype: of the weights.
        origin: what the model was made from, a hub id or a path; empty: not said.
    """
    count = sum(math.prod(shape) for shape in tensor_shapes(config).values())
    front = ["library_name: transformers", "pipeline_tag: image-text-to-text", "tags: [mmedexpert-jax, medical]"]
    if _is_hub_id(origin):
        front.append(f"base_model: {json.dumps(origin)}")
    made = f"Made from `{origin}` with" if origin else "Written by"
    text = config.text
    return f"""---
{chr(10).join(front)}
---
# {_TITLES[config.family]}, {count / 1e9:.3g} billion parameters

{made} mmedexpert-jax ([paper](https://arxiv.org/abs/2601.10949)). Its licence is that of what it was made from.
For research only: nothing here is for clinical use.

| | |
| --- | --- |
| architecture | `{FAMILIES[config.family]}` |
| parameters | {count:,} ({dtype}) |
| decoder | {text.num_layers} layers, width {text.hidden_size}, {text.num_heads} heads, {text.num_kv_heads} of keys |
| vision tower | {config.vision.depth} blocks, width {config.vision.hidden_size} |
| vocabulary | {text.vocab_size:,}{", output layer tied" if config.tie_word_embeddings else ""} |

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this directory", dtype="auto")
processor = AutoProcessor.from_pretrained("this directory")
```

vLLM serves the directory as it stands: `vllm serve <this directory>`.
"""


def adapter_card(base: str, rank: int) -> str:
    """The card of a peft adapter of `rank` over `base`."""
    front = ["library_name: peft", "tags: [mmedexpert-jax, medical, lora]"]
    if _is_hub_id(base):
        front.append(f"base_model: {json.dumps(base)}")
    return f"""---
{chr(10).join(front)}
---
# LoRA adapter of rank {rank} over {base}

Trained with mmedexpert-jax ([paper](https://arxiv.org/abs/2601.10949)). Its licence is that of the base model.
For research only: nothing here is for clinical use.

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained({json.dumps(base)}, dtype="auto")
model = PeftModel.from_pretrained(base, "this directory")
```
"""


def _is_hub_id(name: str) -> bool:
    return bool(_HUB_ID.fullmatch(name)) and not name.startswith("runs/") and not Path(name).exists()
