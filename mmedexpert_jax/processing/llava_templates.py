"""Chat templates of LLaVA's family for files that bring none, as their authors' code writes the prompts.

`<image>` stands for an image; a file's own token takes its place. Images stand where the message has them, each before
a line break, as the authors put them before the question. The first token of a text is the tokenizer's affair.
"""

_HEAD = """\
{%- macro said(message) -%}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' -%}
                {{- '<image>\\n' -}}
            {%- else -%}
                {{- part['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = said(messages[0]) -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = %(system)r -%}
    {%- set turns = messages -%}
{%- endif -%}
"""
_CHAT = (  # of Vicuna, and of LLaVA's Llama 3
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


def _template(system: str, body: str) -> str:
    return _HEAD.replace("%(system)r", repr(system)) + body


# conv_vicuna_v1 of haotian-liu/LLaVA, llava/conversation.py at bb7143c
VICUNA = _template(
    _CHAT,
    """\
{{- system + ' ' -}}
{%- for turn in turns -%}
    {%- if turn['role'] == 'user' -%}
        {{- 'USER: ' + said(turn) | trim + ' ' -}}
    {%- else -%}
        {{- 'ASSISTANT: ' + said(turn) | trim + '</s>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'ASSISTANT:' -}}
{%- endif -%}
""",
)

# conv_mistral_instruct of microsoft/LLaVA-Med, llava/conversation.py at 821e1c7
MISTRAL = _template(
    "",
    """\
{%- for turn in turns -%}
    {%- if turn['role'] == 'user' -%}
        {{- '[INST] ' -}}
        {%- if loop.first and system -%}
            {{- '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' -}}
        {%- endif -%}
        {{- said(turn) + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + said(turn) + ' </s>' -}}
    {%- endif -%}
{%- endfor -%}
""",
)

# conv_llama3 of mbzuai-oryx/BiMediX2, BiMed-MBench/bimedix_inference.py at 497a352
LLAMA3 = _template(
    _CHAT,
    """\
{{- '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' -}}
{%- for turn in turns -%}
    {{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' + said(turn) + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
""",
)

# preprocess_huatuo of FreedomIntelligence/HuatuoGPT-Vision, cli.py at 546b25f; it knows no system turn, which goes into
# the user's first
HUATUO = _template(
    "",
    """\
{%- for turn in turns -%}
    {%- if turn['role'] == 'user' -%}
        {%- set before = system + '\\n' if loop.first and system else '' -%}
        {{- '<|user|>\\n' + (before + said(turn)) | trim + '\\n' -}}
    {%- else -%}
        {{- '<|assistant|>\\n' + said(turn) + ' \\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>\\n' -}}
{%- endif -%}
""",
)


def usual(kind: str, vocabulary: dict[str, int]) -> str:
    """The template of a decoder's model_type, of Llama by the tokens that its tokenizer has."""
    if kind == "llama":
        return LLAMA3 if "<|eot_id|>" in vocabulary else VICUNA
    return {"mistral": MISTRAL, "qwen2": HUATUO}[kind]
