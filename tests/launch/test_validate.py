"""What is wrong with a config is one line, before anything is read or written."""

import pytest

from mmedexpert_jax.launch.cli import main


@pytest.mark.parametrize(
    ("config", "argument", "words"),
    [
        ("gba", "plan_mesh=a100x8", "config.plan_mesh is of a plan; set --config.plan=True as well"),
        ("dsa", "plan_compile=True", "config.plan_compile is of a plan; set --config.plan=True as well"),
        ("ablation", "plan_mesh=a100x8", "set --config.plan=True as well"),
        ("ablation", "seeds=", "config.seeds must be different numbers from 0, at least one"),
        ("ablation", "seeds=0,0", "got 0,0"),
        ("ablation", "seeds=0,-1", "got 0,-1"),
    ],
)
def test_it_is_one_line_and_nothing_starts(capsys, tmp_path, monkeypatch, config, argument, words):
    monkeypatch.chdir(tmp_path)
    assert main([f"--config=configs/{config}.py", f"--config.{argument}"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", ["gba", "contamination", "review"])
def test_a_mesh_that_is_no_name_of_devices_is_refused_in_any_plan(capsys, config):
    assert main([f"--config=configs/{config}.py", "--config.plan=True", "--config.plan_mesh=b200x8"]) == 2
    assert "config.plan_mesh=b200x8 is unknown; give a100, h100 or v5e" in capsys.readouterr().err
