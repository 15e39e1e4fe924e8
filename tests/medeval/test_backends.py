"""One model through this project's engine and through transformers: the same answers."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import transformers
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.processing_utils import ProcessorMixin

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import DataError, NotFinite
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.medeval.backends.choose import open_backend
from mmedexpert_jax.medeval.backends.jax_engine import JaxBackend, content_hash, weights_hash
from mmedexpert_jax.medeval.backends.torch_model import TransformersBackend
from mmedexpert_jax.medeval.prompt_styles import build
from mmedexpert_jax.medeval.systems import parse
from mmedexpert_jax.models import Model, ModelConfig, save_pretrained
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.load import chosen
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.tree import nest
from mmedexpert_jax.processing.chat_template import QWEN2_VL_TEMPLATE
from mmedexpert_jax.rollout import Settings


class Reference(Qwen2VLProcessor):
    """transformers' own, without the video processor that torchvision would have to serve."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("model")
    text = TextConfig(400, 16, 24, 1, 2, 1, mrope_section=(2, 1, 1))
    vision = VisionConfig("qwen2_vl", depth=1, hidden_size=8, intermediate_size=16, num_heads=1, out_hidden_size=16)
    model = Model(ModelConfig(text, vision, True, 398, 399, 395, 396, 386, 386, (388, 386)))
    rng = np.random.default_rng(0)
    params = nest({k: rng.standard_normal(s).astype(np.float32) for k, s in tensor_shapes(model.config).items()})
    save_pretrained(folder, model, params, processor)
    return folder


@pytest.fixture(scope="module")
def asked():
    """Three questions of unlike lengths, the second with an image."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 84, 3), np.uint8))
    cases = [
        Case(str(i), "What is the score? " * (i + 1), ("one", "two"), "A", "AM", "t", (picture,) if i == 1 else ())
        for i in range(3)
    ]
    return [replace(build(case, "think_answer"), key=f"{int(case.id):064x}") for case in cases]


@pytest.fixture
def reference(folder, monkeypatch):
    def processor(*arguments, **options):
        images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        return Reference(images, AutoTokenizer.from_pretrained(folder), QWEN2_VL_TEMPLATE)

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", processor)


@pytest.mark.usefixtures("reference")
def test_both_ways_give_the_same_answers(folder, asked):
    settings = Settings(max_new_tokens=6, batch_size=2)
    ours, theirs = {}, {}
    with jax.default_matmul_precision("highest"):
        JaxBackend(str(folder), "float32", settings).answer(asked, 1, ours.__setitem__)
    TransformersBackend(str(folder), settings).answer(asked, 1, theirs.__setitem__)
    assert sorted(ours) == [0, 1, 2] and [len(replies) for replies in theirs.values()] == [1, 1, 1]
    for number in range(3):
        (mine,), (other,) = ours[number], theirs[number]
        assert (mine.text.strip(), mine.tokens, mine.truncated) == (other.text, other.tokens, other.truncated)


def test_a_model_that_is_not_finite_is_named(folder, asked, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, copy / "model.safetensors")
    with jax.default_matmul_precision("highest"), pytest.raises(NotFinite, match=f"{copy}: its probabilities are not"):
        JaxBackend(str(copy), "float32", Settings(max_new_tokens=6, batch_size=2)).answer(asked, 1, lambda *reply: None)


@pytest.mark.usefixtures("reference")
def test_of_transformers_settings_ours_alone_count(folder, asked, tmp_path):
    """Not those of the checkpoint's generation_config.json: Qwen2-VL's has top_k 1, Qwen2.5-VL's a penalty of 1.05."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "generation_config.json"
    penalties = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "num_beams": 3}
    file.write_text(json.dumps(json.loads(file.read_text()) | penalties | {"top_k": 1, "do_sample": True}))

    def answers(path, questions=asked, num_samples=1, **settings):
        found = {}
        backend = TransformersBackend(str(path), Settings(max_new_tokens=4, batch_size=3, **settings))
        backend.answer(questions, num_samples, found.__setitem__)
        return {questions[number].name: [reply.text for reply in replies] for number, replies in found.items()}

    greedy = answers(folder)
    assert answers(copy) == greedy == answers(folder, temperature=0.5, top_k=1)
    drawn = answers(copy, num_samples=3, temperature=9.0)
    assert all(len(set(texts)) > 1 for texts in drawn.values()), "the checkpoint's top_k would leave one token"
    assert drawn == answers(folder, num_samples=3, temperature=9.0)
    assert answers(copy, asked[1:2], 3, temperature=9.0) == {asked[1].name: drawn[asked[1].name]}


def test_a_model_without_a_chat_template_is_one_line(folder, asked, monkeypatch):
    def processor(*arguments, **options):
        made = Reference(Qwen2VLImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
        made.chat_template = None
        return made

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", processor)
    with pytest.raises(DataError, match="has no chat template"):
        TransformersBackend(str(folder), Settings()).answer(asked, 1, lambda number, replies: None)
    with pytest.raises(DataError, match="transformers cannot load it"):
        TransformersBackend(str(folder / "nowhere"), Settings()).answer(asked, 1, lambda number, replies: None)


def test_of_a_hub_repository_one_folder_is_fetched(folder, tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "VQA_CT").symlink_to(folder)
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: asked.append((a, k)) or tmp_path / "hub")
    config = load_config("configs/evaluate.py")
    backend = open_backend(config, parse("system:med-r1/VQA_CT"), tmp_path, SimpleNamespace(interrupted=lambda: None))
    assert backend.identity["weights"] == weights_hash(str(folder))
    ((repository,), how) = asked[0]
    assert len(asked) == 1 and repository == "yuxianglai117/Med-R1"
    assert how == {"repo_type": "model", "revision": None, "allow_patterns": ["VQA_CT/*"], "ignore_patterns": None}
    with pytest.raises(DataError, match="yuxianglai117/Med-R1 holds no folder VQA_US; see https"):
        open_backend(config, parse("system:med-r1/VQA_US"), tmp_path, SimpleNamespace(interrupted=lambda: None))


def test_answers_in_another_precision_are_answers_of_another_model(folder, monkeypatch):
    def identity(dtype):
        return JaxBackend(str(folder), dtype, Settings()).identity

    assert identity("") == identity("float32") != identity("bfloat16")
    on_cpu = identity("")
    for reading in ({"quantize": "nf4"}, {"max_pixels": 3136}, {"pan_and_scan": True}):
        with chosen(**reading):
            assert identity("") != on_cpu, reading
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert identity("") != on_cpu


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_transformers_answers_are_of_the_weights_in_a_folder_and_of_a_hub_id_by_name(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "pytorch_model.bin").write_bytes(b"old")
    before = TransformersBackend(str(copy), Settings()).identity
    assert before == TransformersBackend(str(copy), Settings()).identity
    (copy / name).write_bytes((copy / name).read_bytes()[:-1] + b"\n\n")
    after = TransformersBackend(str(copy), Settings()).identity
    assert after["transformers"] == before["transformers"] and after["weights"] != before["weights"]
    assert TransformersBackend("owner/name@v2", Settings()).identity == {"transformers": "owner/name@v2"}


def test_a_fingerprint_changes_with_the_weights_alone(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert weights_hash(str(copy)) == weights_hash(str(folder))
    weights = next(copy.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    assert weights_hash(str(copy)) != weights_hash(str(folder))


def test_a_fingerprint_changes_with_any_tensor_of_a_large_file(tmp_path):
    file = tmp_path / "model.safetensors"
    tensors = {f"layer.{i}": np.zeros((1024, 1024, 2), np.float32) for i in range(2)}
    tensors |= {f"norm.{i}": np.zeros(300, np.float32) for i in range(20)}
    save_file(tensors, file)
    before = weights_hash(str(tmp_path))
    assert weights_hash(str(tmp_path)) == before
    for name, tensor in tensors.items():
        changed = tensor.copy()
        inner = changed.reshape(-1)[len(changed) // 3 :][:200_000]  # 800 KB of a layer
        inner[:] = 7
        save_file(tensors | {name: changed}, file)
        assert weights_hash(str(tmp_path)) != before, name
    save_file(tensors, file)
    assert weights_hash(str(tmp_path)) == before


TORN = json.dumps({"a": {"data_offsets": [-5, 2**70]}, "b": {"data_offsets": ["x", 1]}, "c": 1}).encode()
SPANLESS = len(TORN).to_bytes(8, "little") + TORN


@pytest.mark.parametrize("head", [b"GGUF\x03\0\0\0", b"\xff" * 8, (2).to_bytes(8, "little") + b"[]", SPANLESS])
def test_a_large_file_without_a_header_of_tensors_has_a_fingerprint(tmp_path, head):
    file = tmp_path / "model.safetensors"
    file.write_bytes(head + bytes(5 * 2**20))
    before = content_hash([tmp_path])
    file.write_bytes(head + bytes(2**20) + b"\1" * 2**20 + bytes(3 * 2**20))
    assert content_hash([tmp_path]) != before
