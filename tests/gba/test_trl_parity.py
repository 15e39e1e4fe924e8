"""Advantages, loss, statistics and gradients against TRL's own code, on the same tiny weights in both frameworks.

The text stack of Qwen2-VL is Qwen2, so TRL's trainer runs a Qwen2 in torch, and ours the same tensors in JAX. Only the
sampling is replaced: TRL is handed fixed completions.
"""

import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax.gba import group_advantages, policy_loss
from mmedexpert_jax.gba.objective import truncated_weights
from mmedexpert_jax.models import Model, ModelConfig
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.random import init_params
from mmedexpert_jax.models.tree import flatten, nest
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout import completion_logprobs

PROMPTS = [[1, 2, 3], [4, 5, 6]]
GROUP, LIMIT, EOS, PAD, VOCAB = 4, 6, 38, 39, 40
LENGTHS = np.array([[3, 6, 4, 2], [5, 3, 6, 4]])  # end token counted
REWARDS = np.array([[1.0, 0.0, 0.5, 1.5], [2.0, 2.0, 2.0, 2.0]], np.float32)
# TRL's loss type -> our settings; "gspo" and "truncated" are TRL's grpo with another ratio, or with weights
SETTINGS = {
    "grpo": {"aggregation": "sequence"},
    "dapo": {"aggregation": "token"},
    "dr_grpo": {"aggregation": "constant"},
    "gspo": {"aggregation": "sequence", "ratio_level": "sequence"},
    "truncated": {"aggregation": "sequence"},
    "cispo": {"aggregation": "token", "surrogate": "cispo"},
    "sapo": {"aggregation": "sequence", "surrogate": "sapo"},
    "entropy": {"aggregation": "token", "entropy_coef": 0.3},  # TRL's dapo; its bonus is a mean over tokens always
}
BETA, CAP = 0.05, 1.2
LIKE = {"gspo": "grpo", "truncated": "grpo", "entropy": "dapo"}


def _completions():
    tokens = np.random.default_rng(0).integers(1, EOS, (2, GROUP, LIMIT))
    places = np.arange(LIMIT)
    tokens = np.where(places == LENGTHS[..., None] - 1, EOS, tokens)
    return np.where(places < LENGTHS[..., None], tokens, PAD).astype(np.int32)


@pytest.fixture(scope="module")
def trl(tmp_path_factory):
    """TRL's trainer over a random Qwen2, its scored completions, and what ours needs to follow it."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(
        models.WordLevel({**{f"t{i}": i for i in range(EOS)}, "<eos>": EOS, "<pad>": PAD}, unk_token="t0")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, rms_norm_eps=1e-5, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    args = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), per_device_train_batch_size=2 * GROUP, num_generations=GROUP,
        max_completion_length=LIMIT, beta=0.0, epsilon=0.2, epsilon_high=0.28, temperature=1.0, report_to=[],
        use_cpu=True, bf16=False, gradient_checkpointing=False, use_bias_correction_kl=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = GRPOTrainer(
            model=model,
            args=args,
            reward_funcs=lambda prompts, completions, **_: REWARDS.ravel().tolist(),
            train_dataset=Dataset.from_list([{"prompt": "t1"}]),
            processing_class=tokenizer,
        )
    completions = [row[:n].tolist() for row, n in zip(_completions().reshape(-1, LIMIT), LENGTHS.ravel(), strict=True)]
    prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
    trainer._generate = lambda _: (prompts, completions, None, ["x"] * len(prompts), None, {}, None, None)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": "t1"}] * len(prompts))
    return SimpleNamespace(trainer=trainer, model=model, inputs=inputs, torch=torch)


@pytest.fixture(scope="module")
def ours(trl):
    """`run(cotangents)`: log-probabilities and entropies [2, G, R] of the same weights, and their pullback to them."""
    text = TextConfig(VOCAB, 16, 24, 2, 2, 1, mrope_section=(1, 1, 2))
    vision_tower = VisionConfig("qwen2_vl", 1, 16, 32, 2, 16)
    model = Model(ModelConfig(text, vision_tower, tie_word_embeddings=True, eos_token_ids=(EOS,)))
    tensors = {name: jnp.asarray(p.detach().numpy()) for name, p in trl.model.named_parameters()}
    vision = {k: v for k, v in flatten(init_params(model.config, 0, jnp.float32)).items() if k.startswith("visual")}
    size, length = len(PROMPTS), len(PROMPTS[0])
    batch = Batch(
        tokens=np.array(PROMPTS, np.int32),
        lengths=np.full(size, length, np.int32),
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), (size, 3, length)),
        next_position=np.full(size, length, np.int32),
        vision_index=np.full((size, length), -1, np.int32),
        patches=np.zeros((0, 4, 1176), np.float32),
        patch_positions=np.zeros((0, 4, 2), np.int32),
        patch_counts=np.zeros(0, np.int32),
    )

    @jax.jit
    def run(tensors, cotangent):
        def score(tensors):
            return completion_logprobs(model, nest({**tensors, **vision}), batch, _completions(), LENGTHS, entropy=True)

        values, pull = jax.vjp(score, tensors)
        return values, pull(cotangent)[0]

    return lambda cotangent: run(tensors, cotangent)


def test_advantages_are_trls(trl):
    np.testing.assert_allclose(
        group_advantages(REWARDS).ravel(), trl.inputs["advantages"].numpy(), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("loss_type", list(SETTINGS))
def test_loss_statistics_and_gradients_are_trls(trl, ours, loss_type, on_policy):
    with jax.default_matmul_precision("highest"):
        values, _ = ours((jnp.zeros((2, GROUP, LIMIT)),) * 2)
        logprobs = values[0]
        rng = np.random.default_rng(1)
        near = (np.asarray(logprobs) + 0.6 * rng.normal(size=logprobs.shape).astype(np.float32) for _ in range(3))
        old, ref, sampled = near
        behaviour = np.asarray(logprobs) if on_policy else old
        weights = truncated_weights(behaviour, sampled, CAP).reshape(-1, LIMIT) if loss_type == "truncated" else None
        rows = (2 * GROUP, LIMIT)
        mask = np.arange(LIMIT) < LENGTHS.reshape(-1, 1)

        def loss(values):
            return policy_loss(
                values[0].reshape(rows),
                None if on_policy else old.reshape(rows),
                ref.reshape(rows),
                group_advantages(REWARDS).ravel(),
                mask,
                clip=0.2,
                clip_high=0.28,
                beta=BETA,
                max_tokens=LIMIT,
                weights=weights,
                entropy=values[1].reshape(rows),
                **SETTINGS[loss_type],
            )

        (value, stats), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(values)
        _, gradient = ours(slope)

    torch, trainer = trl.torch, trl.trainer
    trainer.loss_type = LIKE.get(loss_type, loss_type)
    trainer.entropy_coef = SETTINGS[loss_type].get("entropy_coef", 0.0)
    trainer._entropy_bonus_enabled = trainer.entropy_coef > 0
    trainer.epsilon_high = 1.28 if loss_type == "cispo" else 0.28  # TRL's cispo takes the cut itself
    trainer.importance_sampling_level, trainer.beta = SETTINGS[loss_type].get("ratio_level", "token"), BETA
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = loss_type == "truncated"
    trainer._metrics["train"].clear()
    inputs = {**trl.inputs, "ref_per_token_logps": torch.tensor(ref.reshape(rows))}
    if not on_policy:
        inputs["old_per_token_logps"] = torch.tensor(old.reshape(rows))
    ratio = torch.exp(torch.tensor(behaviour.reshape(rows) - sampled.reshape(rows)))
    inputs["importance_sampling_ratio"] = ratio.clamp(max=CAP)
    trl.model.zero_grad()
    expected = trainer._compute_loss(trainer.model, inputs)
    expected.backward()

    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-7)
    for name, theirs in trainer._metrics["train"].items():
        if name in stats and not (loss_type == "gspo" and "clip" in name):  # ours is a mean over tokens there too
            np.testing.assert_allclose(stats[name], theirs[0], rtol=1e-4, atol=1e-7, err_msg=name)
    assert {"kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"} <= stats.keys()
    assert on_policy or stats["clip_ratio/region_mean"] > 0
    for name, parameter in trl.model.named_parameters():
        theirs = parameter.grad.numpy()
        np.testing.assert_allclose(gradient[name], theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max(), err_msg=name)
