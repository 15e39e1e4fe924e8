"""README.md of a saved model: the Hub's model card, with what can be known from the weights and their origin."""

import json
import math
from pathlib import Path

from mmedexpert_jax import border
from mmedexpert_jax.config.fields import HUB_ID
from mmedexpert_jax.models.config import FAMILIES, ModelConfig
from mmedexpert_jax.models.network import tensor_shapes

_TITLES = {
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "llava": "LLaVA",
    "gemma3": "Gemma 3",
    "gemma3_text": "Gemma 3 (text)",
}
_METHODS = {
    "dsa": "A LoRA expert by supervised fine-tuning on reasoning traces (DSA, section 4.1 of the paper)",
    "gba": "Trained by reinforcement learning conditioned on clinical guidelines (GBA, section 4.2 of the paper)",
    "merge": "Merged from task vectors (section 4.3 of the paper)",
}
_FORMAT = (
    "Its prompts give the question, lettered options, and ask to think inside <think></think> and to give the letter "
    "inside <answer></answer>."
)


def training_of(run: Path) -> str:
    """Sentences on how the run in a folder made its model, from its config.json; "" where it is no run."""
    file = run / "config.json"
    config = border.read_json(file) if file.is_file() else {}
    if not isinstance(config, dict) or config.get("job") not in _METHODS:
        return ""
    job = config["job"]
    paths = {}
    for key in ("model", "data"):
        fields = config.get(key)
        paths[key] = border.cut(_passed_on(str(fields.get("path", "")))) if isinstance(fields, dict) else ""
    said = f"{_METHODS[job]}, from `{paths['model']}`"
    if job == "merge":
        return f"{said}; its experts are in the run's config.json."
    said += f", on the data `{paths['data']}`"
    objective = config.get("objective")
    said += f", with the objective {border.cut(str(objective))}" if objective else ""
    return f"{said}, seed {config.get('seed', 0)}. {_FORMAT}"


def _passed_on(path: str) -> str:
    """A path as strangers may read it; what may be one of another machine, too, is cut."""
    return Path(path).name if path.count("/") > 1 and "://" not in path else border.passed_on(path)


def model_card(config: ModelConfig, dtype: str, origin: str = "", about: str = "") -> str:
    """Markdown with the Hub's front matter.

    Args:
        config: the architecture.
        dtype: of the weights.
        origin: what the model was made from, a hub id or a path; empty: not said.
        about: sentences on how it was trained.
    """
    count = sum(math.prod(shape) for shape in tensor_shapes(config).values())
    text, sees = config.text, config.vision.depth > 0
    task = "image-text-to-text" if sees else "text-generation"
    front = ["library_name: transformers", f"pipeline_tag: {task}", "tags: [mmedexpert-jax, medical]"]
    if name := on_the_hub(origin):
        front.append(f"base_model: {json.dumps(name)}")
    made = f"Made from `{_passed_on(origin)}` with" if origin else "Written by"
    classes = ("AutoModelForImageTextToText", "AutoProcessor") if sees else ("AutoModelForCausalLM", "AutoTokenizer")
    picture = '{"type": "image", "image": "scan.png"}, ' if sees else ""
    question = "What does the image show?" if sees else "What may a fever of six weeks be?"
    tower = f"{config.vision.depth} blocks, width {config.vision.hidden_size}" if sees else "none"
    return f"""---
{chr(10).join(front)}
---
# {_TITLES[config.family]}, {count / 1e9:.3g} billion parameters

{made} mmedexpert-jax ([paper](https://arxiv.org/abs/2601.10949)). Its licence is that of what it was made from.
For research only: nothing here is for clinical use.

{about}

| | |
| --- | --- |
| architecture | `{FAMILIES[config.family]}` |
| parameters | {count:,} ({dtype}) |
| decoder | {text.num_layers} layers, width {text.hidden_size}, {text.num_heads} heads, {text.num_kv_heads} of keys |
| vision tower | {tower} |
| vocabulary | {text.vocab_size:,}{", output layer tied" if config.tie_word_embeddings else ""} |

```python
from transformers import {", ".join(classes)}

model = {classes[0]}.from_pretrained("this directory", dtype="auto")
processor = {classes[1]}.from_pretrained("this directory")
content = [{picture}{{"type": "text", "text": "{question}"}}]
turns = [{{"role": "user", "content": content}}]
returned = {{"tokenize": True, "return_dict": True, "return_tensors": "pt"}}
inputs = processor.apply_chat_template(turns, add_generation_prompt=True, **returned)
answer = model.generate(**inputs, max_new_tokens=1024)
print(processor.batch_decode(answer[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
```

vLLM serves the directory as it stands: `vllm serve <this directory>`.
"""


def adapter_card(base: str, rank: int, about: str = "", sees: bool = True) -> str:
    """The card of a peft adapter of `rank` over `base`, a model that sees or one of text alone."""
    loader = "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"
    front = ["library_name: peft", "tags: [mmedexpert-jax, medical, lora]"]
    if name := on_the_hub(base):
        front.append(f"base_model: {json.dumps(name)}")
    base = _passed_on(base)
    return f"""---
{chr(10).join(front)}
---
# LoRA adapter of rank {rank} over {base}

Trained with mmedexpert-jax ([paper](https://arxiv.org/abs/2601.10949)). Its licence is that of the base model.
For research only: nothing here is for clinical use.

{about}

```python
from peft import PeftModel
from transformers import {loader}

base = {loader}.from_pretrained({json.dumps(base)}, dtype="auto")
model = PeftModel.from_pretrained(base, "this directory")
```
"""


def on_the_hub(src: str) -> str:
    """The owner/name of a hub id, which the front matter takes without its revision; empty for a path."""
    hub = HUB_ID.fullmatch(src)
    return hub["name"] if hub and not src.startswith("runs/") and not Path(src).exists() else ""
