"""Chat templates of LLaVA's family for files that bring none, as their authors' code writes the prompts.

`<image>` stands for an image; a file's own token takes its place. Images stand where the message has them, each before
a line break, as the authors put them before the question. The first token of a text is the tokenizer's affair.
"""

from mmedexpert_jax.processing.chat_template import shipped

_CHAT = (  # of Vicuna, and of LLaVA's Llama 3
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


def _template(system: str, turns: str) -> str:
    return shipped("llava").replace("%(system)r", repr(system)) + shipped(f"llava_{turns}")


VICUNA = _template(_CHAT, "vicuna")  # conv_vicuna_v1 of haotian-liu/LLaVA, llava/conversation.py at bb7143c
MISTRAL = _template("", "mistral")  # conv_mistral_instruct of microsoft/LLaVA-Med, llava/conversation.py at 821e1c7
LLAMA3 = _template(_CHAT, "llama3")  # conv_llama3 of mbzuai-oryx/BiMediX2, BiMed-MBench/bimedix_inference.py at 497a352
# preprocess_huatuo of FreedomIntelligence/HuatuoGPT-Vision, cli.py at 546b25f; it knows no system turn, which goes into
# the user's first
HUATUO = _template("", "huatuo")


def usual(kind: str, vocabulary: dict[str, int]) -> str:
    """The template of a decoder's model_type, of Llama by the tokens that its tokenizer has."""
    if kind == "llama":
        return LLAMA3 if "<|eot_id|>" in vocabulary else VICUNA
    return {"mistral": MISTRAL, "qwen2": HUATUO}[kind]
