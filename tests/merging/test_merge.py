import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax import lora as adapters
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.merging import merge, merge_with_report, ties
from mmedexpert_jax.models.tree import flatten, nest

PATHS = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")


def model(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)

    def weight(*shape):
        return {"weight": jnp.asarray(rng.standard_normal(shape), dtype)}

    layers = {str(i): {"mlp": {"up_proj": weight(6, 4)}, "norm": weight(4)} for i in range(2)}
    return {"model": {"embed_tokens": weight(5, 4), "layers": layers}}


def moved(base, seed, size=0.1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda v: v + size * jnp.asarray(rng.standard_normal(v.shape), v.dtype), base)


def lora(seed, paths=PATHS, rank=2):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return Lora({path: {"a": draw(rank, 4), "b": draw(6, rank)} for path in paths}, rank, 4.0)


def test_full_and_lora_experts_together():
    base, low = model(), lora(1)
    full = moved(base, 2)
    merged = flatten(merge(base, {"AM": low, "RL": full}, density=0.5, weights={"RL": 2.0, "AM": 1.0}, scale=0.5))
    deltas = {name: tensor - flatten(base)[name] for name, tensor in flatten(full).items()}
    for name, tensor in flatten(base).items():
        path = name.removesuffix(".weight")
        first = adapters.delta(low, path) if path in PATHS else jnp.zeros_like(tensor)
        update = ties(jnp.stack([first, deltas[name]]), 0.5, [1.0, 2.0])
        np.testing.assert_allclose(merged[name], tensor + 0.5 * update, rtol=1e-6, atol=1e-7)
    assert list(merged) == list(flatten(base))


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_untouched_tensors_are_the_base_itself(preset):
    base = model(dtype=jnp.bfloat16)
    merged = merge(base, {"AM": lora(1, PATHS[:1]), "BS": base}, preset=preset)
    for name, tensor in flatten(merged).items():
        assert tensor.dtype == jnp.bfloat16
        assert (tensor is flatten(base)[name]) == (name != f"{PATHS[0]}.weight")


def test_one_whole_expert_comes_back():
    base = model()
    expert = moved(base, 3)
    for method in ("ties", "average", "task_arithmetic", "slerp"):
        for name, tensor in flatten(merge(base, {"AM": expert}, method, density=1.0)).items():
            np.testing.assert_allclose(tensor, flatten(expert)[name], rtol=1e-5, atol=1e-6)


def test_average_is_the_mean_of_the_weights():
    base = model()
    experts = {name: moved(base, seed) for seed, name in enumerate("abc")}
    merged = flatten(merge(base, experts, "average"))
    for name, tensor in merged.items():
        np.testing.assert_allclose(tensor, sum(flatten(e)[name] for e in experts.values()) / 3, rtol=1e-5, atol=1e-6)


def test_official_trims_one_vector_of_the_whole_model():
    base = model()
    experts = {name: moved(base, seed) for seed, name in enumerate("abc")}
    names = sorted(flatten(base))
    stack = [jnp.concatenate([(flatten(e)[n] - flatten(base)[n]).ravel() for n in names]) for e in experts.values()]
    merged = flatten(merge(base, experts, preset="official"))
    update = jnp.concatenate([(merged[n] - flatten(base)[n]).ravel() for n in names])
    np.testing.assert_allclose(update, ties(jnp.stack(stack), 0.2, preset="official"), atol=1e-6)


def test_rank_gives_the_best_adapter_and_says_what_it_kept():
    base, experts = model(), {"AM": lora(1), "BS": lora(2)}
    whole, exact = merge(base, experts), merge(base, experts, rank=9)
    folded = adapters.fold(base, exact)
    for name, tensor in flatten(whole).items():
        np.testing.assert_allclose(flatten(folded)[name], tensor, rtol=1e-4, atol=1e-5)
    low, report = merge_with_report(base, experts, rank=2)
    assert low.rank == 2 and set(low.factors) == set(PATHS)
    lost = total = 0.0
    for path in PATHS:
        update = np.asarray(flatten(whole)[f"{path}.weight"] - flatten(base)[f"{path}.weight"])
        lost += np.sum((update - adapters.delta(low, path)) ** 2)
        total += np.sum(update**2)
    assert report.kept_energy == pytest.approx(float(1 - lost / total), abs=1e-4)


def test_rank_is_refused_where_more_than_linear_layers_changed():
    with pytest.raises(DataError, match=r"embed_tokens\.weight was changed"):
        merge(model(), {"AM": moved(model(), 1)}, rank=2)


def test_report_of_two_opposed_and_one_orthogonal_expert():
    base = {"model": {"w": {"weight": jnp.zeros((1, 4))}}}
    experts = {name: {"model": {"w": {"weight": jnp.array([row])}}} for name, row in {
        "a": [3.0, 0, 1, 0], "b": [-3.0, 0, -1, 0], "c": [0, 2.0, 0, 2.0]}.items()}  # fmt: skip
    _, report = merge_with_report(base, experts, density=0.5)
    rates = report.rates()
    assert rates["cosine"] == [[1, -1, 0], [-1, 1, 0], [0, 0, 1]]
    assert rates["shared"] == rates["conflict"] == 0.5
    assert rates["kept_mass"] == {"a": 1, "b": 1, "c": 1}
    _, report = merge_with_report(base, experts, density=0.25)
    assert report.rates()["kept_mass"] == {"a": 0.75, "b": 0.75, "c": 0.5}
    assert "| a | 1.000 | -1.000 | 0.000 | 0.750 |" in report.markdown()


def refused(match, error, **changes):
    settings = {"base": model(), "experts": {"AM": lora(1), "BS": moved(model(), 2)}} | changes
    with pytest.raises(error, match=match) as info:
        merge(**settings)
    assert "\n" not in str(info.value)


def test_settings_that_do_not_fit():
    refused("no merging method 'tie': choose one of ties", ConfigError, method="tie")
    refused("density", ConfigError, density=1.2)
    refused(r"1 weights for 2 experts \(AM, BS\)", ConfigError, weights=[1.0])
    refused("weights name AM, but", ConfigError, weights={"AM": 1.0})
    refused("positive sum", ConfigError, method="average", weights=[1.0, -1.0])
    refused("at least one expert", ConfigError, experts={})
    refused("rank must be at least 1", ConfigError, experts={"AM": lora(1)}, rank=0)


def test_experts_of_another_base():
    name = "model.embed_tokens.weight"
    full = flatten(model())
    tensor = full[name]

    def wrong(match, leaves):
        refused(match, DataError, experts={"AM": nest(leaves)})

    wrong(f"expert AM lacks {name}", {k: v for k, v in full.items() if k != name})
    wrong("expert AM changes lm_head.weight", full | {"lm_head.weight": tensor})
    wrong(rf"expert AM: {name} is \[4, 4\], but \[5, 4\]", full | {name: tensor[:4]})
    wrong(f"expert AM: {name} holds NaN", full | {name: tensor * jnp.nan})
    refused("expert AM changes model.x.weight", DataError, experts={"AM": lora(1, ("model.x",))})
