"""The chat template of a checkpoint, and Qwen2-VL's for those that bring none."""

import json
from pathlib import Path
from typing import Any

from mmedexpert_jax.errors import DataError

SYSTEM = "You are a helpful assistant."  # said where a conversation has no system message
QWEN2_VL_TEMPLATE = """\
{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
    {%- endif -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for content in message['content'] -%}
            {%- if content['type'] == 'image' or 'image' in content or 'image_url' in content -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif content['type'] == 'video' or 'video' in content -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- elif 'text' in content -%}
                {{- content['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def find_template(directory: Path, tokenizer: Any) -> str:
    """A checkpoint's own chat template, in the order of transformers' processors; Qwen2-VL's where there is none."""
    if (file := directory / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    if (file := directory / "chat_template.json").is_file():
        try:
            return json.loads(file.read_text(encoding="utf-8"))["chat_template"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{file}: not a JSON object with the key chat_template; copy it from the base") from None
    return tokenizer.get_chat_template() if tokenizer.chat_template else QWEN2_VL_TEMPLATE
