"""The tokenizer of the mini model: `python -m mmedexpert_jax.data.embedded.tokenizer [directory]`.

Byte-level BPE trained on the recipe's own prompts and completions of the "pretrain" pool, with Qwen2's pre-tokenizer
(digits stand alone) and the Qwen2-VL family's special tokens and chat template. The same recipe gives the same bytes.
The shipped tokenizer is older than the last change of the wordings (7 of its tokens differ from those of today), and
stays as it is because the model was trained with it.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmedexpert_jax.data.embedded.recipe import generate
from mmedexpert_jax.data.embedded.traces import PARADIGMS
from mmedexpert_jax.data.prompts import question, render
from mmedexpert_jax.processing.patches import ImageConfig
from mmedexpert_jax.processing.processor import CHAT_END, VISION_TOKENS, Processor

MINI = Path(__file__).parents[2] / "assets" / "mini"
SIZE = 2048
MAX_PIXELS = 112 * 112  # 16 merged tokens
_END_OF_TEXT = "<|endoftext|>"
_SPECIAL = (_END_OF_TEXT, "<|im_start|>", CHAT_END, *VISION_TOKENS)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus() -> Iterator[str]:
    """Prompts (neutral and guided) and completions of 8,000 cases."""
    for number, made in enumerate(generate(0, 8_000, "pretrain")):
        yield "system\nYou are a helpful assistant.\nuser\n" + question(made.case)
        paradigm = PARADIGMS[number % len(PARADIGMS)]
        yield question(made.case, paradigm)
        yield "assistant\n" + render(made.traces[paradigm], made.case.answer)


def train(texts: Iterator[str]) -> Tokenizer:
    """A byte-level BPE of at most SIZE tokens, special tokens and tags included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - len(_SPECIAL) - len(_TAGS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in _TAGS])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    return tokenizer


def processor(tokenizer: Tokenizer) -> Processor:
    """The processor of the mini model."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=CHAT_END, pad_token=_END_OF_TEXT, clean_up_tokenization_spaces=False
    )
    return Processor(wrapped, ImageConfig(max_pixels=MAX_PIXELS))


if __name__ == "__main__":
    processor(train(corpus())).save(sys.argv[1] if len(sys.argv) > 1 else MINI)
