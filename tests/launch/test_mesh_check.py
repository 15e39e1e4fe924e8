"""A mesh that cannot be: one line with the smallest change that works, before a model is read."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax.config.job_config import load_config
from mmedexpert_jax.errors import ConfigError, ResourceError
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.launch.job_plan import check_devices

FIELD = re.compile(r"--config\.(\S+?)=(\S+)")


def changes(error: str) -> list[dict[str, int | str]]:
    """Each change that a refusal calls enough: fields with their values, "a=2 (or 4, 1) or b=8", or several at once."""
    found = []
    for part in re.split(r" or (?=--)", error.strip().partition("; set ")[2]):
        fields = [(name, int(value) if value.isdigit() else value) for name, value in FIELD.findall(part)]
        found += [dict(fields)] if fields else []
        found += [
            {fields[0][0]: int(value)} for others in re.findall(r"\(or (.*)\)", part) for value in others.split(",")
        ]
    return found


@pytest.mark.parametrize(
    ("job", "model", "devices", "fields", "code", "words"),
    [
        ("gba", "random:qwen2_5_vl_7b", "h100x8", {"mesh.tensor": 8}, 2, "mesh.tensor=8 does not divide the 28 heads"),
        ("dsa", "random:qwen2_5_vl_7b", "h100x8", {"mesh.tensor": 8}, 2, "--config.mesh.tensor=4"),
        (
            "gba",
            "random:qwen2_vl_2b",
            "h100x5",
            {"mesh.fsdp": 5, "prompts_per_step": 5},
            2,
            "mesh.fsdp=5 does not divide the",
        ),
        ("gba", "random:qwen2_vl_2b", "h100x8", {"mesh.fsdp": 3}, 2, "mesh fsdp=3, tensor=1 does not divide the 8 dev"),
        (
            "gba",
            "random:qwen2_vl_2b",
            "h100x8",
            {"mesh.data": 4, "mesh.tensor": 4},
            4,
            "needs 16 devices and there are 8",
        ),
        (
            "gba",
            "random:qwen2_vl_2b",
            "h100x8",
            {"prompts_per_step": 12},
            2,
            "set --config.prompts_per_step=8 (or 16) or --config.mesh.data=6 (or 4, 3, 2)",
        ),
        (
            "gba",
            "random:qwen2_5_vl_7b",
            "h100x8",
            {"mesh.tensor": 3, "mesh.data": 1},
            2,
            "set --config.mesh.tensor=2 (or 4, 1)",
        ),
        ("gba", "mini", "h100x3", {"mesh.tensor": 3}, 2, "set --config.mesh.tensor=2 --config.mesh.data=1"),
    ],
)
def test_it_is_one_line_with_a_change_that_works(capsys, monkeypatch, job, model, devices, fields, code, words):
    monkeypatch.setattr("mmedexpert_jax.models.load_policy", lambda *_, **__: pytest.fail("the model was read"))
    fields = {"model.path": model, "plan_mesh": devices, "plan": True, "eval.every": -1} | fields
    command = [
        f"--config=configs/{job}.py:qwen2_vl_2b",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]
    assert main(command) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error
    assert changes(error)
    for change in changes(error):  # what is named is enough
        check_devices(load_config(f"configs/{job}.py:qwen2_vl_2b", fields | change))


@pytest.mark.parametrize(
    ("job", "devices", "fields", "words"),
    [
        ("dsa", "h100x8", {"mesh.fsdp": 8}, " GB of weights a device, 60 GB are there (8 x h100)"),
        ("dsa", "h100x8", {"mesh.fsdp": 8}, "; set --config.mesh.fsdp=4 --config.shard=full"),
        ("gba", "a100x1", {}, "at least 4 such devices do"),
        ("gba", "v5e-8", {"prompts_per_step": 8}, "no split of so many holds them"),
    ],
)
def test_weights_that_are_not_held_are_refused_before_they_are_read(job, devices, fields, words):
    """As a run does; a plan counts all that is needed, and says more."""
    fields = {"model.path": "random:qwen2_5_vl_72b", "plan_mesh": devices} | fields
    with pytest.raises(ResourceError, match=re.escape(words)) as refused:
        check_devices(load_config(f"configs/{job}.py:qwen2_vl_2b", fields))
    assert "\n" not in str(refused.value)
    for change in changes(str(refused.value)):  # what is named is enough
        check_devices(load_config(f"configs/{job}.py:qwen2_vl_2b", fields | change))


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_rows_are_split_over_data_and_fsdp_alone(tensor):
    fields = {"model.path": "random:qwen2_5_vl_7b", "plan_mesh": "h100x8", "plan": True}
    fields |= {"mesh.tensor": tensor, "prompts_per_step": 8 // tensor}
    check_devices(load_config("configs/gba.py:qwen2_vl_2b", fields))


SIZES = st.integers(1, 8)


@settings(max_examples=60)
@given(
    st.sampled_from([1, 2, 3, 6, 8, 12, 16]),
    st.fixed_dictionaries(
        {"mesh.data": st.sampled_from([-1, 1, 2, 3, 5]), "mesh.fsdp": SIZES, "mesh.tensor": SIZES},
        optional={"prompts_per_step": st.integers(1, 20), "minibatches": st.integers(1, 3), "micro_batch": SIZES},
    ),
)
def test_every_change_that_is_named_is_accepted(devices, fields):
    fields |= {"plan_mesh": f"h100x{devices}", "eval.every": -1}
    try:
        check_devices(load_config("configs/gba.py", fields))
    except (ConfigError, ResourceError) as error:
        named = changes(str(error))
        assert named and "\n" not in str(error)
        for change in named:
            check_devices(load_config("configs/gba.py", fields | change))
