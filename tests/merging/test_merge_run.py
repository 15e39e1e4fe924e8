import functools
import json
import shutil

import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from mmedexpert_jax import lora as adapters
from mmedexpert_jax import merging
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Model, ModelConfig, load_model, save_pretrained
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.load import folders
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.tree import flatten, nest
from mmedexpert_jax.processing.processor import Processor
from mmedexpert_jax.runtime import Run, metrics
from mmedexpert_jax.train.state import State, keep


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer_dir):
    """A base, two adapters over it (AM, BS), a full model that an adapter over the AM model makes (gba)."""
    folder = tmp_path_factory.mktemp("experts")
    text = TextConfig(400, 16, 24, 1, 2, 1, mrope_section=(2, 1, 1))
    vision = VisionConfig("qwen2_vl", depth=1, hidden_size=8, intermediate_size=16, num_heads=1, out_hidden_size=16)
    model = Model(ModelConfig(text, vision, True, 398, 399, 395, 396, 386, 386, (388, 386)))
    rng = np.random.default_rng(0)
    shapes = tensor_shapes(model.config)
    params = nest({name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})
    processor = Processor.load(tiny_tokenizer_dir)
    save_pretrained(folder / "base", model, params, processor)
    for seed, name in enumerate(("AM", "BS")):
        adapters.save_peft(folder / name / "export" / "adapter", random_lora(params, seed), str(folder / "base"))
    start = adapters.fold(params, random_lora(params, 0))
    save_pretrained(folder / "start", model, start, processor)
    adapters.save_peft(folder / "gba" / "export" / "adapter", random_lora(start, 2), str(folder / "start"))
    return folder


def random_lora(params, seed):
    rng = np.random.default_rng(seed)
    factors = {}
    for name, tensor in flatten(params).items():
        if "_proj.weight" in name:
            rows, columns = tensor.shape
            pair = {"a": rng.standard_normal((2, columns)), "b": 0.1 * rng.standard_normal((rows, 2))}
            factors[name.removesuffix(".weight")] = {key: value.astype(np.float32) for key, value in pair.items()}
    return Lora(factors, 2, 4)


def settings(folder, **changes):
    config = ConfigDict(
        {
            "model": {"path": str(folder / "base"), "dtype": ""},
            "experts": (str(folder / "AM"), str(folder / "BS"), f"RL={folder / 'gba'}"),
            "weights": (),
            "method": "ties",
            "rules": "paper",
            "density": 0.2,
            "scale": 1.0,
        }
    )
    with config.unlocked():
        config.update(changes)
    return config


def execute(config, path, **keywords):
    with Run.open(path, config) as run:
        merging.run(config, run, **keywords)
    return json.loads((path / "STATUS.json").read_text())["summary"]


def test_model_equals_the_merge_of_its_parts(folder, tmp_path, capsys):
    summary = execute(settings(folder), tmp_path)
    _, base = load_model(folder / "base")
    experts = {name: adapters.load_peft(folder / name / "export" / "adapter", base) for name in ("AM", "BS")}
    expected = merging.merge(base, experts | {"RL": load_model(folder / "gba")[1]})
    for name, tensor in flatten(load_model(tmp_path)[1]).items():
        np.testing.assert_allclose(tensor, flatten(expected)[name], rtol=1e-5, atol=1e-5)
    assert list(summary["experts"]) == ["AM", "BS", "RL"]
    report = json.loads((tmp_path / "export" / "interference.json").read_text())
    assert report["experts"] == ["AM", "BS", "RL"]
    assert "model.layers.*.mlp.up_proj.weight" in report["kinds"]
    assert "| sign conflict |" in capsys.readouterr().out
    assert "sign conflict" in (tmp_path / "report.html").read_text()
    assert "<svg" in (tmp_path / "merge_report.html").read_text()


def test_a_recipe_is_a_model_without_weights(folder, tmp_path):
    execute(settings(folder), tmp_path / "whole")
    execute(settings(folder, result="recipe"), tmp_path / "recipe")
    assert not list((tmp_path / "recipe").rglob("*.safetensors"))
    whole, computed = (flatten(load_model(tmp_path / name)[1]) for name in ("whole", "recipe"))
    for name, tensor in whole.items():
        np.testing.assert_array_equal(computed[name], tensor)


def test_a_recipe_of_other_rows_than_its_config_says_is_refused(folder, tmp_path):
    execute(settings(folder, result="recipe"), tmp_path)
    file = tmp_path / "export" / "model" / "config.json"
    config = json.loads(file.read_text())
    part = config if "vocab_size" in config else config["text_config"]
    part["vocab_size"] += 1
    file.write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"embed_tokens\.weight is \[400, 16\] by its recipe, \[401, 16\] by config"):
        load_model(tmp_path)


def test_a_recipe_of_an_older_version_keeps_its_numbers(folder, tmp_path):
    """RAM+ with numbers of its own, written once as now and once under the names that recipes had before."""
    numbers = ("threshold=0.01", "slope=0.5", "bound=2")
    execute(settings(folder, method="ramplus", result="recipe", parameters=numbers), tmp_path / "recipe")
    now = flatten(load_model(tmp_path / "recipe")[1])
    file = tmp_path / "recipe" / "export" / "model" / "recipe.json"
    content = json.loads(file.read_text())
    for name in ("threshold", "slope", "bound"):
        del content["parameters"]["numbers"][name]
    content["parameters"] |= {"threshold": 0.01, "amplify": [0.5, 2]}
    file.write_text(json.dumps(content))
    before = flatten(load_model(tmp_path / "recipe")[1])
    content["parameters"] |= {"threshold": 1e-5, "amplify": [0.1, 0.2]}
    file.write_text(json.dumps(content))
    default = flatten(load_model(tmp_path / "recipe")[1])
    for name, tensor in now.items():
        np.testing.assert_array_equal(before[name], tensor)
    assert any(np.any(default[name] != tensor) for name, tensor in now.items())


def test_the_folders_behind_a_recipe_are_those_of_its_base_and_experts(folder, tmp_path):
    execute(settings(folder, result="recipe"), tmp_path / "recipe")
    adapters = {folder / name / "export" / "adapter" for name in ("AM", "BS", "gba")}
    expected = {tmp_path / "recipe" / "export" / "model", folder / "base", folder / "start", *adapters}
    assert set(folders(tmp_path / "recipe")) == expected


def test_stages_pass_recipes_on_instead_of_models(folder, tmp_path):
    """The paper's order of stages: experts merged, RL from that merge, all merged again; nothing but the last is
    written as a model, and the result is that of writing every stage."""
    experts = (str(folder / "AM"), str(folder / "BS"))
    results = {}
    for kind in ("recipe", "model"):
        first, rl = tmp_path / kind / "first", tmp_path / kind / "rl"
        execute(settings(folder, experts=experts, result=kind), first)
        start = load_model(first)[1]
        adapters.save_peft(rl / "export" / "adapter", random_lora(start, 5), str(first))
        execute(settings(folder, experts=(*experts, f"RL={rl}")), tmp_path / kind / "ours")
        assert bool(list(first.rglob("*.safetensors"))) == (kind == "model")
        results[kind] = flatten(load_model(tmp_path / kind / "ours")[1])
    for name, tensor in results["model"].items():
        np.testing.assert_allclose(results["recipe"][name], tensor, rtol=1e-5, atol=1e-5)


def test_a_sweep_is_scored_and_the_best_is_merged(folder, tmp_path):
    sizes = {}

    def evaluate(params, number):
        moved = [np.abs(np.asarray(t) - base[n]).sum() for n, t in flatten(params).items()]
        sizes[number] = float(np.sum(moved))
        return {"eval/accuracy": 1 / sizes[number], "eval/low": 0.0, "eval/high": 1.0, "eval/accuracy/AM": 0.5}

    base = flatten(load_model(folder / "base")[1])
    grid = ConfigDict({"densities": ("0.5", "0.1"), "scales": (1.0, 0.5), "score": True})
    summary = execute(settings(folder, sweep=grid), tmp_path, evaluate=evaluate)
    assert summary["best"]["density"] == 0.1 and summary["best"]["scale"] == 0.5 and summary["best"]["high"] == 1.0
    assert len(sizes) == 4 and len(json.loads((tmp_path / "export" / "sweep.json").read_text())) == 4
    moved = [np.abs(np.asarray(t) - base[n]).sum() for n, t in flatten(load_model(tmp_path)[1]).items()]
    assert float(np.sum(moved)) == pytest.approx(min(sizes.values()), rel=1e-5)


def test_weights_are_searched_after_the_grid_and_looks_are_counted(folder, tmp_path):
    """The score likes AM heavy and BS light: the best of eight trials has that order, and a killed search goes on."""
    base = flatten(load_model(folder / "base")[1])
    parts = {name: adapters.load_peft(folder / name / "export" / "adapter", nest(base)) for name in ("AM", "BS")}
    towards = {name: flatten(adapters.fold(nest(base), part)) for name, part in parts.items()}

    def evaluate(params, number, last=99):
        if number == last:
            raise KeyboardInterrupt
        along = {
            name: sum(float(np.vdot(np.asarray(t) - base[n], ends[n] - base[n])) for n, t in flatten(params).items())
            for name, ends in towards.items()
        }
        accuracy = float(1 / (1 + np.exp(-(along["AM"] - along["BS"]) / 1e3)))
        return {"eval/accuracy": accuracy, "eval/low": accuracy - 0.1, "eval/high": accuracy + 0.1}

    grid = ConfigDict({"densities": ("0.5",), "scales": (1.0,), "score": True, "trials": 8})
    experts = (str(folder / "AM"), str(folder / "BS"))
    config = settings(folder, experts=experts, sweep=grid, method="task_arithmetic")
    best = execute(config, tmp_path / "run", evaluate=evaluate)["best"]
    assert (tmp_path / "run" / "table.md").read_text().startswith("Best of 9 looks at held-out cases: density 0.5, ")
    assert best["weights"]["AM"] > max(1, best["weights"]["BS"]) and best["looks"] == 9
    assert best["high of all"] - best["accuracy"] == pytest.approx(0.1 * 2.7729 / 1.95996, rel=1e-3)  # z of 1 - .025/9
    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path / "killed", evaluate=functools.partial(evaluate, last=5))
    assert execute(config, tmp_path / "killed", evaluate=evaluate)["best"] == best


@pytest.mark.parametrize("changed", [False, True])
def test_a_killed_sweep_scores_what_is_left_unless_an_expert_changed(folder, tmp_path, changed):
    expert = tmp_path / "AM"
    shutil.copytree(folder / "AM", expert)
    base = flatten(load_model(folder / "base")[1])
    asked = []

    def evaluate(params, number, last=9):
        if number == last:
            raise KeyboardInterrupt
        asked.append(number)
        moved = sum(float(np.abs(np.asarray(t) - base[n]).sum()) for n, t in flatten(params).items())
        return {"eval/accuracy": 1 / moved, "eval/accuracy/AM": 0.5}

    grid = ConfigDict({"densities": ("0.5", "0.1"), "scales": (1.0, 0.5), "score": True})
    config = settings(folder, experts=(str(expert), str(folder / "BS")), sweep=grid)
    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path / "run", evaluate=functools.partial(evaluate, last=3))
    if changed:
        lora = random_lora(load_model(folder / "base")[1], 9)
        adapters.save_peft(expert / "export" / "adapter", lora, str(folder / "base"))
    resumed = execute(config, tmp_path / "run", evaluate=evaluate)
    assert asked == [0, 1, 2, *([0, 1, 2, 3] if changed else [3])]
    assert [row["step"] for row in metrics.read(tmp_path / "run")] == [0, 1, 2, 3]
    whole = execute(config, tmp_path / "whole", evaluate=evaluate)
    assert resumed["best"] == whole["best"]
    rows = [json.loads((tmp_path / name / "export" / "sweep.json").read_text()) for name in ("run", "whole")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_an_unfinished_run_is_read_from_its_checkpoint(folder, tmp_path, trainable):
    """A run that a signal stopped before it exported anything is the expert that its newest checkpoint holds."""
    base = load_model(folder / "base")[1]
    trained = adapters.load_peft(folder / "AM" / "export" / "adapter", base)
    if trainable == "full":
        trained = adapters.fold(base, trained)
    config = {"model": {"path": str(folder / "base")}, "lora": {"alpha": 4}}
    optimizer = optax.adam(1e-3)
    with Run.open(tmp_path / "run", config) as stopped:
        for step in (2, 3):
            state = State(trained, optimizer.init(trained), step, 7)
            keep(stopped, state, steps=9, every=1)
    for name, path in (("unfinished", tmp_path / "run"), ("exported", folder / "AM")):
        execute(settings(folder, experts=(f"AM={path}", str(folder / "BS"))), tmp_path / name)
    first, second = (flatten(load_model(tmp_path / name)[1]) for name in ("unfinished", "exported"))
    for name, tensor in first.items():
        np.testing.assert_allclose(tensor, second[name], rtol=0, atol=0 if trainable == "lora" else 1e-6)
    recipe = settings(folder, experts=(f"AM={tmp_path / 'run'}", str(folder / "BS")), result="recipe")
    with pytest.raises(ConfigError, match=r"result=recipe keeps the names of models, and .*run is a run that is not"):
        execute(recipe, tmp_path / "recipe")


def test_rl_vector_from_where_gba_began(folder, tmp_path):
    """gba's adapter starts at AM: seen from the base its vector holds AM's, seen from its start it does not."""
    cosine = {}
    for origin in ("base", "start"):
        execute(settings(folder, rl_origin=origin), tmp_path / origin)
        report = json.loads((tmp_path / origin / "export" / "interference.json").read_text())
        cosine[origin] = report["all"]["cosine"][0][2]
    assert cosine["base"] > 0.5 > abs(cosine["start"])


def test_rank_writes_an_adapter(folder, tmp_path):
    summary = execute(settings(folder, rank=3), tmp_path)
    _, base = load_model(folder / "base")
    assert adapters.load_peft(tmp_path / "export" / "adapter", base).rank == 3
    assert 0 < summary["kept_energy"] < 1
    assert not (tmp_path / "export" / "model").exists()


def test_bad_experts_are_refused(folder, tmp_path):
    for experts, match in (
        ((str(folder / "AM"), str(folder / "AM")), "two experts are called AM"),
        ((str(folder / "base"),), "no expert differs"),
    ):
        with pytest.raises(ConfigError, match=match):
            execute(settings(folder, experts=experts), tmp_path / match[:4])
    for base, match in ((folder / "AM", "AM: an adapter, but a merge"), ("random:qwen2_vl_2b", "random weights")):
        with pytest.raises(DataError, match=match):
            execute(settings(folder, model={"path": str(base)}), tmp_path / match[:4])


def test_fields_that_say_nothing_are_told(folder, tmp_path, capsys):
    for field in ({"trials": 3}, {"score": True}):
        sweep = {"densities": (), "scales": (1.0,)} | field
        with pytest.raises(ConfigError, match=r"set config\.sweep\.densities too"):
            execute(settings(folder, sweep=sweep), tmp_path / "sweep")
    execute(settings(folder, experts=(str(folder / "AM"),), rl_origin="start"), tmp_path / "start")
    assert "no expert is called RL, so that rl_origin=start says nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "silent"),
    [
        ({"weights": (0.0, 1.0, 1.0)}, ["AM"]),
        ({"weights": (0.0, 0.0, 0.0)}, ["AM", "BS", "RL"]),
        ({"scale": 0.0}, ["AM", "BS", "RL"]),
        ({"parameters": ("AM.density=0", "BS.weight@embed=0")}, ["AM"]),
        ({"parameters": ("density=0",), "rules": "official"}, []),  # whose trim keeps one entry more
    ],
)
def test_experts_whose_numbers_are_0_are_told(folder, tmp_path, capsys, changes, silent):
    """Those whose share of the merge is 0; where it is all of them, the result is the base, and that is said too."""
    execute(settings(folder, **changes), tmp_path)
    said = capsys.readouterr().out
    assert [name for name in ("AM", "BS", "RL") if f"expert {name}: nothing of it comes in" in said] == silent
    base, merged = (load_file(place / "model.safetensors") for place in (folder / "base", tmp_path / "export/model"))
    is_base = all(np.array_equal(base[name], merged[name]) for name in base)
    assert is_base == (len(silent) == 3) == ("The merge adds nothing to the base" in said)


def test_experts_that_are_the_base_or_one_another_are_told(folder, tmp_path, capsys):
    still = f"still={folder / 'base'}"
    execute(settings(folder, experts=(f"one={folder / 'AM'}", f"two={folder / 'AM'}", still)), tmp_path)
    said = capsys.readouterr().out
    assert "experts one and two are the same files" in said and "still does not differ from the base" in said


def test_numbers_that_a_method_does_not_read_are_refused(folder, tmp_path):
    (tmp_path / "m.yaml").write_text(
        f"{{merge_method: linear, models: [{{model: {folder / 'start'}, parameters: {{weight: 1}}}}]}}"
    )
    sweep = {"densities": (0.1, 0.2), "scales": (1.0,)}
    for match, changes in {
        "weights says nothing: model_stock has no weights": {"weights": (1.0, 2.0, 3.0), "method": "model_stock"},
        "'density=0.5' says nothing: average has no density": {"parameters": ("density=0.5",), "method": "average"},
        "densities: average has no density": {"sweep": sweep, "method": "average"},
        "trials: sce has no weights": {"sweep": sweep | {"trials": 2, "score": True}, "method": "sce"},
        "weights says nothing beside config.mergekit": {"weights": (1.0,), "mergekit": str(tmp_path / "m.yaml")},
        "rank 400 is above that of every matrix, 32 at most": {"rank": 400},
    }.items():
        with pytest.raises(ConfigError, match=match):
            execute(settings(folder, **changes), tmp_path / match[:9])


def test_arbitration_measures_each_expert_once_on_prompts_alone(folder, tmp_path):
    """The job with method sar equals the merge in memory with the information that it keeps in export/fisher."""
    changes = {"method": "sar", "data": {"path": "mini"}, "eval": {"split": "dev"}, "fisher_prompts": 2, "seed": 0}
    execute(settings(folder, **changes), tmp_path)
    _, base = load_model(folder / "base")
    known = {name: load_file(tmp_path / "export/fisher" / name / "model.safetensors") for name in ("AM", "BS", "RL")}
    assert all((values >= 0).all() for found in known.values() for values in found.values())
    experts = {name: load_model(folder / name)[1] for name in ("AM", "BS")} | {"RL": load_model(folder / "gba")[1]}
    expected = merging.merge(base, experts, method="sar", density=0.2, fisher={k: nest(v) for k, v in known.items()})
    found = flatten(load_model(tmp_path)[1])
    for name, tensor in flatten(expected).items():
        np.testing.assert_allclose(found[name], tensor, atol=1e-5, err_msg=name)
    recipe = tmp_path / "recipe"
    execute(settings(folder, result="recipe", **changes), recipe)
    np.testing.assert_allclose(flatten(load_model(recipe)[1])[name], tensor, atol=1e-5)
