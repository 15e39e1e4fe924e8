"""config.json in both layouts, and the published sizes."""

import copy
import math

import pytest
import transformers

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.models import ModelConfig
from mmedexpert_jax.models.config import PUBLISHED
from mmedexpert_jax.models.network import tensor_shapes

FLAT = {  # the fields of Qwen/Qwen2-VL-2B-Instruct's config.json that matter here
    "model_type": "qwen2_vl",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": 1536,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
# counted by transformers from the checkpoints' own configs
PARAMETERS = {
    "qwen2_vl_2b": 2_208_985_600,
    "qwen2_vl_7b": 8_291_375_616,
    "qwen2_5_vl_3b": 3_754_622_976,
    "qwen2_5_vl_7b": 8_292_166_656,
    "qwen2_5_vl_32b": 33_452_718_336,
    "qwen2_5_vl_72b": 73_410_777_344,
    "qwen3_vl_2b": 2_127_532_032,
    "qwen3_vl_4b": 4_437_815_808,
    "qwen3_vl_8b": 8_767_123_696,
    "qwen3_vl_32b": 33_357_390_064,  # 32,762,123,264 of Qwen3-32B, and the 8B's tower with wider mergers
    "llava_med_7b": 7_566_219_264,  # 7,241,732,096 of Mistral-7B, 303,507,456 of CLIP, the projector
    "huatuogpt_vision_7b": 7_935_646_208,  # 7,615,616,512 of Qwen2-7B, likewise
    "bimedix2_8b": 8_354_748_416,  # 8,030,261,248 of Llama-3.1-8B, likewise
    "medgemma_4b": 4_300_079_472,
    "medgemma_27b": 27_432_406_640,
}


def test_flat_config_with_the_generation_config_ids():
    config = ModelConfig.from_hf(FLAT, {"eos_token_id": [151645, 151643], "pad_token_id": 151643})
    assert config.text.rms_norm_eps == 1e-6 and config.text.mrope_section == (16, 24, 24)
    assert (config.eos_token_ids, config.pad_token_id) == ((151645, 151643), 151643)
    assert config.tie_word_embeddings and config.vision.out_hidden_size == 1536
    assert hash(config) == hash(ModelConfig.from_hf(FLAT, {"eos_token_id": [151645, 151643], "pad_token_id": 151643}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_published_parameter_counts(name):
    assert sum(math.prod(shape) for shape in tensor_shapes(PUBLISHED[name]).values()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_written_config_reads_back_the_same_here_and_in_transformers(name):
    ours = PUBLISHED[name]
    written = ours.to_hf()
    said = {"eos_token_id": list(ours.eos_token_ids), "pad_token_id": ours.pad_token_id}
    assert ModelConfig.from_hf(written, said) == ours
    kinds = {"qwen2_vl": transformers.Qwen2VLConfig, "qwen2_5_vl": transformers.Qwen2_5_VLConfig}
    kinds |= {
        "qwen3_vl": transformers.Qwen3VLConfig,
        "gemma3": transformers.Gemma3Config,
        "llava": transformers.LlavaConfig,
    }
    kind = kinds[ours.family]
    nested = kind(**written).to_dict()
    assert "text_config" in nested
    assert ModelConfig.from_hf(nested, said) == ours


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "llava"}, "llava"),
        ({"model_type": None}, "model_type"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "yarn"),
        ({"use_sliding_window": True, "max_window_layers": 27}, "use_sliding_window"),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention"] * 28}, "use_sliding_window"),
        ({"head_dim": 64}, "head_dim is 64, not the 128 of hidden_size over num_attention_heads"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [8, 8, 8]}}, "mrope_section"),
        ({"hidden_size": 3072, "num_attention_heads": 24}, "1536"),
    ],
)
def test_what_the_network_does_not_implement_is_refused_by_name(change, named):
    with pytest.raises(DataError, match=named) as caught:
        ModelConfig.from_hf(FLAT | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("", "num_attention_heads", 0),
        ("", "num_key_value_heads", -2),
        ("", "hidden_size", None),
        ("", "hidden_size", 1536.0),
        ("", "num_hidden_layers", "28"),
        ("", "num_hidden_layers", True),
        ("", "vocab_size", 10**30),
        ("", "rope_scaling", "mrope"),
        ("", "rope_scaling", {"type": 5}),
        ("", "rope_scaling", {"type": "mrope", "mrope_section": "16"}),
        ("", "rope_theta", float("nan")),
        ("", "num_hidden_layers", 10**9),
        ("vision_config", "depth", 10**9),
        ("", "rms_norm_eps", 1e30),
        ("", "rope_theta", 1e300),
        ("", "rms_norm_eps", -1),
        ("", "rms_norm_eps", float("inf")),
        ("", "tie_word_embeddings", "false"),
        ("", "use_sliding_window", 0),
        ("", "eos_token_id", "x" * 500),
        ("", "eos_token_id", [1, -1]),
        ("", "image_token_id", 151936),
        ("", "vision_config", [1]),
        ("", "text_config", "text"),
        ("vision_config", "patch_size", 0),
        ("vision_config", "mlp_ratio", float("nan")),
        ("vision_config", "mlp_ratio", 3.5),
        ("vision_config", "spatial_merge_size", 3),
        ("", "model_type", ["qwen2_vl"]),
    ],
)
def test_values_that_are_none_are_one_line_with_the_key(section, key, value):
    content = FLAT | {key: value} if not section else FLAT | {section: FLAT[section] | {key: value}}
    with pytest.raises(DataError, match=r"config\.json") as caught:
        ModelConfig.from_hf(content)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 240 and (key in line or str(value) in line)


@pytest.mark.parametrize(
    ("change", "without"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [16, 24, 24]}}, ""),
        ({"rope_parameters": {"type": "mrope", "rope_theta": 5e5, "mrope_section": [16, 24, 24]}}, "rope_scaling"),
        ({"rope_scaling": {"type": "mrope", "rope_theta": 7e5, "mrope_section": [16, 24, 24]}}, "rope_theta"),
        ({"use_sliding_window": True}, ""),  # from layer 28 of 28 on: none has it
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, ""),
        ({"use_sliding_window": True, "layer_types": ["full_attention"] * 28, "max_window_layers": 0}, ""),
        ({"head_dim": 128, "dtype": "bfloat16", "quantization_config": {"quant_method": "awq", "bits": 4}}, ""),
    ],
)
def test_what_two_spellings_say_is_what_transformers_reads(change, without):
    """Frequencies and windows by transformers' own attributes."""
    content = {key: value for key, value in (FLAT | change).items() if key != without}
    theirs = transformers.Qwen2VLConfig(**copy.deepcopy(content)).get_text_config()
    ours = ModelConfig.from_hf(content).text
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert "sliding_attention" not in theirs.layer_types or theirs.sliding_window is None


@pytest.mark.parametrize("name", ["medgemma_4b", "llava_med_7b"])
def test_the_image_token_has_two_keys_as_in_transformers(name):
    content = PUBLISHED[name].to_hf()
    del content["image_token_index"]
    content["image_token_id"] = 7
    theirs = {"gemma3": transformers.Gemma3Config, "llava": transformers.LlavaConfig}[content["model_type"]]
    assert ModelConfig.from_hf(content).image_token_id == theirs(**copy.deepcopy(content)).image_token_id


def test_a_rotary_factor_that_is_missing_is_named():
    content = PUBLISHED["bimedix2_8b"].to_hf()
    del content["text_config"]["rope_scaling"]["low_freq_factor"]
    with pytest.raises(DataError, match=r"rope_scaling: low_freq_factor is missing: a finite number above 0"):
        ModelConfig.from_hf(content)


@pytest.mark.parametrize("name", ["medgemma_4b", "llava_med_7b"])
def test_a_square_smaller_than_a_patch_is_refused(name):
    content = PUBLISHED[name].to_hf()
    content["vision_config"] |= {"image_size": 1}
    with pytest.raises(DataError, match="image_size is 1, not at least the 14 pixels of a patch"):
        ModelConfig.from_hf(content)


def test_generation_settings_are_kept_for_saving():
    config = ModelConfig.from_hf(FLAT, {"eos_token_id": [151645, 151643], "temperature": 0.01, "top_k": 1})
    assert config.generation == '{"temperature": 0.01, "top_k": 1}'
