"""Merges of checkpoints on disk: equal to those in memory, resumable, and refused by name where they must be."""

import json
import shutil
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmedexpert_jax import lora as adapters
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.merging import blockwise, merge
from mmedexpert_jax.merging.checkpoint import Checkpoint
from mmedexpert_jax.merging.merge_recipe import Recipe, merge_to_disk, open_expert, read_recipe
from mmedexpert_jax.merging.parameters import Parameters
from mmedexpert_jax.models.tree import flatten, nest
from mmedexpert_jax.runtime.checkpoints import Checkpoints
from mmedexpert_jax.train import State

SHAPES = {"model.embed_tokens.weight": (40, 8), "visual.merger.weight": (6, 4), "model.norm.weight": (8,)} | {
    f"model.layers.{layer}.mlp.{name}_proj.weight": size
    for layer in range(2)
    for name, size in (("up", (24, 8)), ("down", (8, 24)))
}
BF16 = ml_dtypes.bfloat16


def draw(seed, like=None):
    rng = np.random.default_rng(seed)
    if like is None:
        return {name: rng.standard_normal(shape).astype(np.float32).astype(BF16) for name, shape in SHAPES.items()}
    return {n: (t.astype(np.float32) + 0.05 * rng.standard_normal(t.shape)).astype(BF16) for n, t in like.items()}


def low_rank(seed):
    rng = np.random.default_rng(seed)
    paths = [n.removesuffix(".weight") for n in SHAPES if "_proj" in n]
    shape = {path: SHAPES[f"{path}.weight"] for path in paths}
    factors = {
        p: {"a": rng.standard_normal((2, shape[p][1])), "b": 0.1 * rng.standard_normal((shape[p][0], 2))} for p in paths
    }
    return Lora({p: {k: v.astype(np.float32) for k, v in f.items()} for p, f in factors.items()}, 2, 4.0)


def save(path, tensors, shards=1):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    if shards == 1:
        save_file(tensors, path / "model.safetensors")
        return path
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        part = names[number::shards]
        save_file({name: tensors[name] for name in part}, path / f"s{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"s{number}.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, two full experts (one sharded, under the newer names), an adapter, and one over the first expert."""
    folder = tmp_path_factory.mktemp("models")
    base = draw(0)
    save(folder / "base", base)
    first, second = draw(1, base), draw(2, base)
    save(folder / "first", first)
    newer = {
        f"model.{n}" if n.startswith("visual.") else n.replace("model.", "model.language_model.", 1): t
        for n, t in second.items()
    }
    save(folder / "second", newer, shards=3)
    adapters.save_peft(folder / "low", low_rank(3), str(folder / "base"))
    adapters.save_peft(folder / "gba", low_rank(4), str(folder / "first"))
    return folder


def recipe(models, names, method="ties", numbers=None, dtype="", **more):
    experts = {name: str(models / name) for name in names}
    numbers = numbers or {"density": {"": 0.3}}
    return Recipe(
        str(models / "base"), experts, Parameters(method, tuple(experts), "paper", numbers), (), dtype, **more
    )


def loaded(path):
    return {name: np.array(view) for name, view in Checkpoint(path).items()}


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "karcher"])
def test_disk_equals_memory_bit_for_bit(models, tmp_path, method, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 64)  # several blocks a tensor
    report = merge_to_disk(recipe(models, ("first", "low", "second"), method), tmp_path / "out", max_shard_bytes=900)
    base = loaded(models / "base")
    experts = {"first": nest(loaded(models / "first")), "low": low_rank(3), "second": nest(loaded(models / "second"))}
    expected = flatten(merge(nest(base), experts, method, density=0.3))
    found = loaded(tmp_path / "out")
    assert list(found) == list(base) and all(found[name].dtype == BF16 for name in found)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1 and (tmp_path / "out" / "config.json").exists()
    assert set(report.sums) == set(SHAPES)


def test_an_adapter_over_another_model_is_seen_from_the_base(models, tmp_path):
    merge_to_disk(recipe(models, ("gba",), numbers={"density": {"": 1.0}}, dtype="float32"), tmp_path / "out")
    first, delta = loaded(models / "first"), low_rank(4)
    for name, tensor in loaded(tmp_path / "out").items():
        expected = first[name].astype(np.float32)
        path = name.removesuffix(".weight")
        if path in delta.factors:
            expected = expected + np.asarray(adapters.delta(delta, path))
        np.testing.assert_allclose(tensor, expected, rtol=1e-5, atol=1e-6)


def test_one_tensor_under_two_names_must_be_one(models, tmp_path):
    tensors = dict(load_file(models / "base" / "model.safetensors"))
    name = next(iter(tensors))
    for factor in (1, 2):
        save(
            tmp_path / str(factor),
            tensors | {name.replace("model.", "model.language_model.", 1): factor * tensors[name]},
        )
    assert set(Checkpoint(tmp_path / "1")) == set(SHAPES)
    with pytest.raises(DataError, match="are one tensor and differ; delete the one that is not meant"):
        Checkpoint(tmp_path / "2")


def test_untouched_tensors_are_copied_byte_for_byte(models, tmp_path):
    report = merge_to_disk(recipe(models, ("low",)), tmp_path / "out")
    found, base = load_file(tmp_path / "out" / "model.safetensors"), loaded(models / "base")
    for name in SHAPES:
        assert (found[name].tobytes() == base[name].tobytes()) == ("_proj" not in name)
    assert all("_proj" in name for name in report.sums)


def test_a_killed_merge_goes_on(models, tmp_path):
    job = recipe(models, ("first", "second"))
    whole = merge_to_disk(job, tmp_path / "whole")

    kill(job, tmp_path / "out", after=3)
    assert not (tmp_path / "out").exists()
    journal = tmp_path / ".out.partial" / "journal.jsonl"
    assert len(journal.read_text().splitlines()) == 4
    journal.write_text(journal.read_text() + '["model.layers.1')  # cut short by the kill
    shard = tmp_path / ".out.partial" / "model.safetensors"
    before = shard.stat().st_ino
    report = merge_to_disk(job, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_ino == before  # went on, did not start over
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert report.rates() == whole.rates()


def test_another_merge_does_not_go_on_from_the_journal(models, tmp_path):
    kill(recipe(models, ("first",)), tmp_path / "out", after=1)
    merge_to_disk(recipe(models, ("second",)), tmp_path / "out")
    merge_to_disk(recipe(models, ("second",)), tmp_path / "fresh")
    assert load_equal(tmp_path / "out", tmp_path / "fresh")


def kill(recipe, path, after):
    def stop(done, total):
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_to_disk(recipe, path, stop)


def test_a_line_of_the_journal_cut_short_costs_one_tensor_and_no_later_ones(models, tmp_path):
    job = recipe(models, ("first", "second"))
    kill(job, tmp_path / "out", after=2)
    journal = tmp_path / ".out.partial" / "journal.jsonl"
    with journal.open("a") as file:
        file.write('["model.layers.1')
    kill(job, tmp_path / "out", after=5)
    names = [json.loads(line)[0] for line in journal.read_text().splitlines()[1:]]
    assert len(names) == 5 and len(set(names)) == 5


def alpha_changed(path, base):
    settings = json.loads((path / "adapter" / "adapter_config.json").read_text())
    (path / "adapter" / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 8.0}))


def next_checkpoint(path, base):
    Checkpoints(path / "run" / "ckpt").save(2, vars(State(low_rank(7), (), 2)))


def recipe_changed(path, base):
    content = json.loads((path / "recipe" / "recipe.json").read_text())
    content["parameters"]["numbers"]["density"][""] = 0.9
    (path / "recipe" / "recipe.json").write_text(json.dumps(content))


def expert_behind_the_recipe_changed(path, base):
    adapters.save_peft(path / "behind", low_rank(7), str(base))


@pytest.mark.parametrize("change", [alpha_changed, next_checkpoint, recipe_changed, expert_behind_the_recipe_changed])
def test_a_merge_whose_experts_changed_does_not_go_on_from_the_journal(models, tmp_path, change):
    base = models / "base"
    adapters.save_peft(tmp_path / "adapter", low_rank(5), str(base))
    Checkpoints(tmp_path / "run" / "ckpt").save(1, vars(State(low_rank(6), (), 1)))
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": {"path": str(base)}}))
    adapters.save_peft(tmp_path / "behind", low_rank(8), str(base))
    experts = {"first": str(models / "first"), "behind": str(tmp_path / "behind")}
    numbers = {"density": {"": 0.3}}
    Recipe(str(base), experts, Parameters("ties", tuple(experts), "paper", numbers)).write(tmp_path / "recipe")
    experts = {name: str(tmp_path / name) for name in ("adapter", "run", "recipe")}
    job = Recipe(str(base), experts, Parameters("ties", tuple(experts), "paper", numbers), (), "float32")
    kill(job, tmp_path / "out", after=len(SHAPES) - 1)
    change(tmp_path, base)
    merge_to_disk(job, tmp_path / "out")
    merge_to_disk(job, tmp_path / "fresh")
    assert load_equal(tmp_path / "out", tmp_path / "fresh")


def load_equal(first, second):
    first, second = loaded(first), loaded(second)
    return all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_a_recipe_equals_the_merge_that_it_stands_for(models, tmp_path):
    """Two stages: experts merged, an adapter over that, all merged again; the first is never written as a model."""
    stage_one = recipe(models, ("first", "second"))
    stage_one.write(tmp_path / "stage-one")
    assert not list((tmp_path / "stage-one").glob("*.safetensors"))
    read, written = read_recipe(tmp_path / "stage-one").open(), stage_one.open()
    assert all(read.how(name) == written.how(name) for name in SHAPES)
    adapters.save_peft(tmp_path / "rl", low_rank(5), str(tmp_path / "stage-one"))
    experts = {"first": str(models / "first"), "RL": str(tmp_path / "rl")}
    final = Recipe(str(models / "base"), experts, Parameters("ties", ("first", "RL"), "paper", {}), (), "float32")
    merge_to_disk(final, tmp_path / "final")

    one = Recipe(stage_one.base, stage_one.experts, stage_one.parameters, (), "float32")
    merge_to_disk(one, tmp_path / "one")
    start = loaded(tmp_path / "one")
    delta = low_rank(5)
    for name, tensor in loaded(tmp_path / "final").items():
        base = loaded(models / "base")[name].astype(np.float32)
        rl = start[name] - base
        if name.removesuffix(".weight") in delta.factors:
            rl = rl + np.asarray(adapters.delta(delta, name.removesuffix(".weight")))
        first = loaded(models / "first")[name].astype(np.float32) - base
        expected = flatten(merge({"w": base}, {"a": {"w": base + first}, "b": {"w": base + rl}}, density=1.0))["w"]
        np.testing.assert_allclose(tensor, expected, rtol=1e-4, atol=1e-5)


def test_experts_of_another_base_are_refused_by_name(models, tmp_path):
    base = draw(0)
    name = "model.embed_tokens.weight"

    def refused(match, tensors):
        path = save(tmp_path / f"wrong{len(list(tmp_path.iterdir()))}", tensors)
        job = Recipe(str(models / "base"), {"X": str(path)}, Parameters("ties", ("X",), "paper", {}))
        with pytest.raises(DataError, match=match):
            merge_to_disk(job, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused(rf"expert X lacks {name}", {n: t for n, t in base.items() if n != name})
    refused(r"expert X changes model.extra", base | {"model.extra": base[name]})
    refused(
        rf"expert X: {name} is \[39, 8\], but \[40, 8\] in the base \(another vocabulary\)",
        base | {name: base[name][:39]},
    )
    refused("expert X: lm_head.weight is not its embedding", base | {"lm_head.weight": base[name] + np.ones((), BF16)})
    refused(rf"expert X: {name} is int8, but .* in the base", base | {name: np.ones(base[name].shape, np.int8)})
    refused(rf"expert X: {name} holds NaN", base | {name: np.full_like(base[name], np.nan)})
    with pytest.raises(ConfigError, match="holds something other than a model"):
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "thesis.tex").touch()
        merge_to_disk(recipe(models, ("first",)), tmp_path / "kept")


def test_a_tied_output_layer_of_an_expert_is_no_difference(models, tmp_path):
    tensors = loaded(models / "first")
    save(tmp_path / "tied", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    job = recipe(models, ("first",))
    merge_to_disk(job, tmp_path / "one")
    merge_to_disk(Recipe(job.base, {"first": str(tmp_path / "tied")}, job.parameters), tmp_path / "two")
    assert load_equal(tmp_path / "one", tmp_path / "two")


def test_what_a_network_computes_itself_is_not_merged(models, tmp_path):
    """Older checkpoints hold frequencies and positions, of which the base has none."""
    first = loaded(models / "first")
    held = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    held["visual.embeddings.position_ids"] = np.arange(4)[None]
    save(tmp_path / "older", first | held)
    job = recipe(models, ("first",))
    merge_to_disk(job, tmp_path / "one")
    merge_to_disk(Recipe(job.base, {"first": str(tmp_path / "older")}, job.parameters), tmp_path / "two")
    assert load_equal(tmp_path / "one", tmp_path / "two")


def test_an_index_says_which_shard_has_a_tensor(models, tmp_path):
    """As a model is loaded: a tensor that a shard holds beside its own is not read, one that it lacks is named."""
    folder = tmp_path / "sharded"
    shutil.copytree(models / "second", folder)
    file, other = folder / "s0.safetensors", folder / "s1.safetensors"
    name = next(iter(load_file(other)))
    save_file(load_file(file) | {name: load_file(other)[name] * 2}, file)
    expected, found = loaded(models / "second"), loaded(folder)
    assert expected.keys() == found.keys() and all(np.array_equal(expected[name], found[name]) for name in found)
    save_file({key: tensor for key, tensor in load_file(other).items() if key != name}, other)
    with pytest.raises(DataError, match=rf"s1\.safetensors: has no tensor {name}, which the index puts there"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"experts": ["a"]}, "key experts"),
        ({"base": 5}, "key base"),
        ({"dtype": "int3"}, "key dtype"),
        ({"parameters": {"method": "evolve"}}, "no merging method"),
        ({"parameters": {"numbers": {"density": {"": "x"}}}}, "density"),
        ({"parameters": {"switches": {"elect": "mass", "odd": 1}}}, "odd"),
    ],
)
def test_a_recipe_written_by_hand_is_typed(change, named, models, tmp_path):
    recipe(models, ("first",)).write(tmp_path)
    content = json.loads((tmp_path / "recipe.json").read_text())
    parameters = content["parameters"] | change.get("parameters", {})
    (tmp_path / "recipe.json").write_text(json.dumps(content | change | {"parameters": parameters}))
    with pytest.raises(DataError, match=f"recipe.json: not a recipe of a merge .*{named}"):
        read_recipe(tmp_path)


def test_broken_files(models, tmp_path):
    save(tmp_path / "cut", draw(0))
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        Checkpoint(tmp_path / "cut")
    for name in ("r", "a"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("{")
    with pytest.raises(DataError, match=r"a/adapter_config\.json is not JSON"):
        open_expert("a", str(tmp_path / "a"), Checkpoint(models / "base"))
    (tmp_path / "r" / "recipe.json").write_text("{}")
    with pytest.raises(DataError, match="not a recipe of a merge"):
        read_recipe(tmp_path / "r")


@pytest.mark.slow
def test_memory_does_not_grow_with_tensors_or_experts(tmp_path):
    """The process's anonymous memory rises by less than three times the largest tensor in float32 for eight experts."""
    size = 24 << 20
    table = np.random.default_rng(0).standard_normal(size // 8).astype(BF16)
    for number in range(9):
        tensor = np.concatenate([np.roll(table, shift * (number + 1)) for shift in range(8)]).reshape(-1, 1024)
        save(tmp_path / str(number), {"model.embed_tokens.weight": tensor})
    del table, tensor
    experts = {str(number): str(tmp_path / str(number)) for number in range(1, 9)}
    job = Recipe(str(tmp_path / "0"), experts, Parameters("ties", tuple(experts), "paper", {"density": {"": 0.2}}))
    before, peak = anonymous(), 0
    done = threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    merge_to_disk(job, tmp_path / "out")
    done.set()
    watcher.join()
    assert before < peak < before + 3 * size * 4


def anonymous():
    """Anonymous memory of this process, bytes (Linux)."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024
