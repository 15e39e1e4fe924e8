"""Where compiled programs are kept: the user's cache by default, another folder where one is chosen."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from mmedexpert_jax.errors import ResourceError
from mmedexpert_jax.runtime import devices

RUN = """
import jax
from mmedexpert_jax.runtime.devices import keep_programs
keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x * 2)(1.0)
print(jax.config.jax_compilation_cache_dir)
"""
SEVERAL = """
from mmedexpert_jax.runtime.mesh import ROWS, by_device, make_mesh
mesh = make_mesh(2)
jax.jit(by_device(lambda x: jax.lax.psum(x, "data"), mesh, ROWS, ROWS))(jax.numpy.arange(4.0))
"""


def kept_in(home, run=RUN, **chosen):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": "", "JAX_PLATFORMS": "cpu"} | chosen
    done = subprocess.run([sys.executable, "-c", run], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_programs_are_kept_in_the_users_cache_or_where_the_user_says(tmp_path):
    folder = kept_in(tmp_path)
    assert folder.startswith(str(tmp_path / ".cache" / "mmedexpert_jax" / "programs"))
    assert os.listdir(folder)
    assert kept_in(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == str(tmp_path / "mine")
    assert kept_in(tmp_path, JAX_ENABLE_COMPILATION_CACHE="0") == "None"


def test_programs_over_several_devices_of_a_cpu_are_not_kept(tmp_path):  # XLA does not order what it reads from a file
    folder = tmp_path / "mine"
    chosen = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_COMPILATION_CACHE_DIR": str(folder)}
    kept_in(tmp_path, **chosen)
    before = sorted(os.listdir(folder))
    assert before
    kept_in(tmp_path, run=RUN + SEVERAL, **chosen)
    assert not [name for name in os.listdir(folder) if name not in before and not name.endswith("-atime")]


def test_a_platform_of_which_jax_finds_no_kind_is_no_such_device(monkeypatch):
    """JAX_PLATFORMS=cuda without CUDA ends in an assertion of JAX's without words; any other assertion is a fault."""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    for file, error in (("jax/_src/xla_bridge.py", ResourceError), ("jax/_src/core.py", AssertionError)):
        with pytest.raises(error) as caught, devices.device_errors():
            exec(compile("assert False", file, "exec"))
        assert ("JAX cannot use 'cuda' here" in str(caught.value)) == (error is ResourceError)


def test_64_bits_of_the_users_shell_are_turned_off(capsys):
    jax.config.update("jax_enable_x64", True)
    try:
        devices.in_32_bits()
        assert "JAX_ENABLE_X64 is set" in capsys.readouterr().err
        assert np.asarray(jax.numpy.arange(2)).dtype == np.int32
    finally:
        jax.config.update("jax_enable_x64", False)
    devices.in_32_bits()
    assert not capsys.readouterr().err
