"""The traps of porting Qwen2-VL and Qwen2.5-VL, each by its name, against transformers' own modules.

Traps that only a whole forward shows are in test_parity.py: causal and padded attention, several images in a prompt,
windows of images whose sides they do not divide, greedy text.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLMLP, Qwen2_5_VLModel
from transformers.models.qwen2_vl import modeling_qwen2_vl as peer
from transformers.vision_utils import get_vision_window_index

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.models import ModelConfig
from mmedexpert_jax.models.config import PUBLISHED, TextConfig, VisionConfig
from mmedexpert_jax.models.decoder import TextDecoder
from mmedexpert_jax.models.layers import GatedMLP, RMSNorm
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.qwen2_vl import Qwen2VL
from mmedexpert_jax.models.vision import PatchEmbed, PatchMerger, QuickGeluMLP, VisionTower
from mmedexpert_jax.processing import mrope_positions, patch_positions

VISION = VisionConfig("qwen2_vl", 1, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=24)
VISION_25 = VisionConfig("qwen2_5_vl", 1, 32, 44, num_heads=2, out_hidden_size=24)
IMAGE_PAD = 9


def holding(module: nnx.Module, reference: torch.nn.Module, dtype=jnp.float32) -> nnx.Module:
    """The module with the reference's parameters, which have the same names."""
    values = {name: parameter.detach().float().numpy() for name, parameter in reference.named_parameters()}
    graph, state = nnx.split(module, nnx.Param)
    flat = [
        (path, variable.replace(jnp.asarray(values[".".join(map(str, path))], dtype)))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def scattered(module: torch.nn.Module, scale: float = 0.5) -> torch.nn.Module:
    """The module with seeded normal parameters, so that norms and biases are not at their neutral values."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, scale, generator=generator)
    return module


def noise(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


def outputs(module: nnx.Module, reference: torch.nn.Module, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        expected = reference(torch.tensor(x)).numpy()
    return np.asarray(holding(module, reference)(jnp.asarray(x))).reshape(expected.shape), expected


def test_merger_gelu_is_exact_not_the_tanh_approximation():
    reference = scattered(peer.PatchMerger(dim=24, context_dim=32))
    ours, expected = outputs(PatchMerger(VISION), reference, noise(1, 16, 32))
    reference.mlp[1] = torch.nn.GELU(approximate="tanh")
    with torch.no_grad():
        wrong = reference(torch.tensor(noise(1, 16, 32))).numpy()
    assert np.abs(ours - expected).max() < 2e-5 * expected.std()
    assert np.abs(wrong - expected).max() > 1e-4 * expected.std()


def test_qwen2_vl_blocks_have_quick_gelu():
    reference = scattered(peer.VisionMlp(32, 64, "quick_gelu"))
    ours, expected = outputs(QuickGeluMLP(32, 64), reference, noise(5, 32))
    assert np.abs(ours - expected).max() < 1e-5 * expected.std()


def test_qwen2_5_vl_blocks_have_swiglu_with_bias():
    config = transformers.Qwen2_5_VLConfig().vision_config
    config.hidden_size, config.intermediate_size = 32, 44
    reference = scattered(Qwen2_5_VLMLP(config, bias=True))
    ours, expected = outputs(GatedMLP(32, 44, True), reference, noise(5, 32))
    assert reference.down_proj.bias is not None
    assert np.abs(ours - expected).max() < 1e-5 * expected.std()


def test_patch_embedding_is_the_convolution():
    reference = scattered(peer.PatchEmbed(embed_dim=32), 0.05)
    ours, expected = outputs(PatchEmbed(VISION), reference, noise(6, 1176))
    assert np.abs(ours - expected).max() < 1e-5 * expected.std()


def test_rms_norm_rounds_to_bfloat16_before_the_weight():
    reference = scattered(peer.Qwen2VLRMSNorm(64, eps=1e-6)).to(torch.bfloat16)
    x = torch.tensor(noise(256, 64)).to(torch.bfloat16)
    with torch.no_grad():
        expected = reference(x).float().numpy()
    values = jnp.asarray(x.float().numpy(), jnp.bfloat16)
    ours = np.asarray(holding(RMSNorm(64, 1e-6), reference, jnp.bfloat16)(values), np.float32)
    x32 = x.float().numpy()
    once = x32 / np.sqrt(np.square(x32).mean(-1, keepdims=True) + 1e-6) * reference.weight.detach().float().numpy()
    once = np.asarray(jnp.asarray(once, jnp.bfloat16), np.float32)
    assert np.mean(ours != expected) < 0.002  # ulps of rsqrt
    assert np.mean(once != expected) > 0.1  # what rounding once would give


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotary_angles_are_float32_and_split_by_section(dtype):
    config = PUBLISHED["qwen2_vl_2b"].text
    positions = np.random.default_rng(0).integers(0, 2**15, (3, 1, 64))
    hf = transformers.Qwen2VLConfig().text_config
    hf.hidden_size, hf.num_attention_heads = config.hidden_size, config.num_heads
    hf.rope_parameters = {"rope_type": "default", "rope_theta": config.rope_theta, "mrope_section": [16, 24, 24]}
    like = torch.zeros(1, dtype=getattr(torch, dtype))
    expected = peer.Qwen2VLRotaryEmbedding(hf)(like, torch.tensor(positions))
    ours = TextDecoder.rope(_Holder(config), jnp.asarray(positions.transpose(1, 0, 2)), jnp.dtype(dtype))
    tolerance = {"float32": 5e-3, "bfloat16": 2**-7}[dtype]  # float32 angles up to 2**15 are exact to 2**-9
    for own, theirs in zip(ours, expected, strict=True):
        assert own.dtype == jnp.dtype(dtype)
        gap = np.abs(np.asarray(own, np.float32)[:, 0] - theirs.float().numpy()[..., :64])
        assert gap.max() < tolerance


class _Holder:
    """What `rope` reads of a module."""

    def __init__(self, config: TextConfig | VisionConfig):
        self.config = config


def test_vision_rotary_is_float32_rows_then_columns():
    places = patch_positions(64, 36)
    hf = transformers.Qwen2VLConfig().vision_config
    cos, sin = peer.Qwen2VLVisionRotaryEmbedding(hf)(torch.zeros(1), torch.tensor(places))
    ours = VisionTower.rope(_Holder(PUBLISHED["qwen2_vl_2b"].vision), jnp.asarray(places)[None])
    for own, theirs in zip(ours, (cos, sin), strict=True):
        assert own.dtype == jnp.float32
        assert np.abs(np.asarray(own)[0, 0] - theirs.numpy()[:, :40]).max() < 2e-5


def test_vision_norms_keep_their_own_epsilon():
    text = TextConfig(32, 24, 32, 1, num_heads=2, num_kv_heads=1, rms_norm_eps=1e-3, mrope_section=(2, 2, 2))
    for vision, norm, field in (
        (VISION, peer.PatchMerger(24, 32).ln_q, "eps"),
        (VISION_25, peer_merger_25().ln_q, "variance_epsilon"),
    ):
        network = Qwen2VL(ModelConfig(text, vision))
        ours = (network.visual.blocks[0].norm1, network.visual.blocks[0].norm2, network.visual.merger.ln_q)
        assert {norm.eps for norm in ours} == {getattr(norm, field)} == {1e-6}
        assert network.model.norm.eps == 1e-3


def peer_merger_25() -> torch.nn.Module:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger

    return Qwen2_5_VLPatchMerger(dim=24, context_dim=32)


def test_epsilon_and_tokens_per_second_come_from_the_file_not_from_class_defaults():
    written = PUBLISHED["qwen2_5_vl_7b"].to_hf()
    assert transformers.Qwen2_5_VLConfig().text_config.rms_norm_eps == 1e-5  # the default that the hub's files change
    assert transformers.Qwen2_5_VLConfig().vision_config.tokens_per_second == 4
    read = ModelConfig.from_hf(written)
    assert (read.text.rms_norm_eps, read.vision.tokens_per_second) == (1e-6, 2)
    written["rms_norm_eps"], written["vision_config"]["tokens_per_second"] = 3e-6, 7
    read = ModelConfig.from_hf(written)
    assert (read.text.rms_norm_eps, read.vision.tokens_per_second) == (3e-6, 7)
    del written["rms_norm_eps"], written["vision_config"]["tokens_per_second"]
    read = ModelConfig.from_hf(written)
    assert (read.text.rms_norm_eps, read.vision.tokens_per_second) == (1e-5, 4)


def test_the_vision_towers_hidden_size_is_its_output_in_qwen2_vl_and_its_width_in_qwen2_5_vl():
    assert (
        PUBLISHED["qwen2_vl_2b"].to_hf()["vision_config"] | {"hidden_size": 1536, "embed_dim": 1280}
        == (PUBLISHED["qwen2_vl_2b"].to_hf()["vision_config"])
    )
    new = PUBLISHED["qwen2_5_vl_7b"].to_hf()["vision_config"]
    assert (new["hidden_size"], new["out_hidden_size"]) == (1280, 3584)


def test_a_sliding_window_that_is_not_used_is_ignored():
    written = PUBLISHED["qwen2_vl_2b"].to_hf() | {"sliding_window": 16, "use_sliding_window": False}
    assert ModelConfig.from_hf(written) == ModelConfig.from_hf(PUBLISHED["qwen2_vl_2b"].to_hf())


def test_untied_models_have_a_head_and_tied_ones_none():
    assert "lm_head.weight" in tensor_shapes(PUBLISHED["qwen2_5_vl_7b"])
    assert "lm_head.weight" not in tensor_shapes(PUBLISHED["qwen2_vl_2b"])
    assert {len(tensor_shapes(PUBLISHED[size])) for size in ("qwen2_vl_2b", "qwen2_5_vl_7b")} == {729}


sides = st.integers(1, 12).map(lambda side: 2 * side)


@settings(max_examples=25, deadline=None)
@given(rows=sides, columns=sides, window=st.sampled_from([56, 112, 168]))
def test_windows_are_transformers_whether_or_not_they_divide_the_image(rows, columns, window):
    order, ends = get_vision_window_index(torch.tensor([[1, rows, columns]]), 2, window, 14)
    config = VisionConfig("qwen2_5_vl", 1, 32, 44, 2, 24, window_size=window)
    windows = jax.jit(partial(VisionTower.windows, _Holder(config)))
    ids = np.asarray(windows(patch_positions(rows, columns)[None]))[0]
    units = ids.reshape(-1, 4)
    assert (units == units[:, :1]).all()  # a merged token is never split
    expected = {frozenset(part) for part in np.split(order.numpy(), ends.numpy()[1:-1] // 4)}
    found = {frozenset(np.flatnonzero(units[:, 0] == window_id).tolist()) for window_id in set(units[:, 0].tolist())}
    assert found == expected


def test_still_images_take_one_time_step_whatever_tokens_per_second_is():
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    text |= {"intermediate_size": 16, "vocab_size": 32}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 16, "intermediate_size": 16}
    model = Qwen2_5_VLModel(transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    tokens = np.array([1, 1, *[IMAGE_PAD] * 6, 1, *[IMAGE_PAD] * 4, 1, 1])
    grids = [(4, 6), (8, 2)]
    for speed in (2, 25):
        model.config.vision_config.tokens_per_second = speed
        expected, delta = model.get_rope_index(
            torch.tensor(tokens)[None],
            torch.tensor(tokens == IMAGE_PAD).int()[None],
            torch.tensor([(1, *grid) for grid in grids]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
        )
        positions, following = mrope_positions(tokens, IMAGE_PAD, grids)
        assert np.array_equal(positions, expected[:, 0].numpy())
        assert following == len(tokens) + delta.item()


@pytest.mark.parametrize("name", ["qwen2_untied"])
def test_a_pad_that_is_an_eos_id_is_still_a_token_inside_a_prompt(name, checkpoint, prompts):
    """The fixture pads with the EOS id; here every prompt also ends in it, as a chat's turns do."""
    case = checkpoint(name)
    padded = prompts(case.reference, [[9], [3, (4, 6), 2]], tail=np.full((2, 1), 199))
    logits = np.asarray(case.model.logits(case.params, padded.batch))
    with torch.no_grad():
        expected = case.reference(**padded.inputs).logits.numpy()
    for row, length in enumerate(padded.batch.lengths):
        assert padded.batch.tokens[row, length - 1] == 199
        assert np.abs(logits[row, :length] - expected[row, :length]).max() < 1e-4 * expected.std()


def test_video_in_a_batch_built_by_hand_is_refused(checkpoint, prompts):
    case = checkpoint("qwen2_untied")
    batch = prompts(case.reference, [[9], [3, (4, 6), 2]]).batch
    start, video = case.model.config.vision_start_token_id, case.model.config.video_token_id
    batch.tokens[0, 2:4] = start, video
    with pytest.raises(DataError, match=r"row 0 .*video.*still images") as caught:
        case.model.logits(case.params, batch)
    assert "\n" not in str(caught.value)
    batch.tokens[0, 2] = 5  # a video token that a model has sampled is no video
    case.model.logits(case.params, batch)
