"""A state in parts: written on one mesh, it goes on, equal, on another, and on one device."""

import os
import subprocess
import sys

RUN = """
import dataclasses, sys
import jax, jax.numpy as jnp, numpy as np
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.models.sharded import gathered
from mmedexpert_jax.runtime.checkpoints import Checkpoints
from mmedexpert_jax.runtime.mesh import make_mesh
from mmedexpert_jax.train import Learner, Policy, State, Sums

config = load_config("configs/dsa.py:mini", {"trainable": "full", "shard": "full", "lr": 0.1, "schedule": "cosine"})
rng = np.random.default_rng(0)
shapes = {"q_proj": (512, 256), "o_proj": (256, 512), "norm": (256,)}  # the matrices are over checkpoints.PACK

def draw():
    return {name: {"weight": rng.normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}

start, targets = draw(), [draw() for _ in range(4)]

def loss(policy, _, micro):
    numbers, rows = micro  # the rows are split over the devices, and so are sums over them
    pairs = zip(*map(jax.tree.leaves, (gathered(policy.params), numbers_of(numbers))))
    pulls = sum(jnp.sum((a - b) ** 2) for a, b in pairs)
    return Sums(jnp.sum(rows) * pulls, jnp.sum(rows))

def numbers_of(number):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves)[number[0]], *targets)

def learner(mesh):
    return Learner(config, Policy(jax.tree.map(jnp.asarray, start)), loss, 4, mesh=mesh, keeps_base=False)

def step(one, state):
    micro = (np.full(8, state.step), np.arange(1.0, 9.0, dtype=np.float32))
    return one.update(state, [[micro]])

def parts(state):
    leaf = state.trained["q_proj"]["weight"]
    return leaf.size // leaf.addressable_shards[0].data.size

checkpoints, ends = Checkpoints(sys.argv[1], keep=9), {}
for written, count in (((8, 1, 1), 1), ((1, 8, 1), 8)):
    one = learner(make_mesh(*written))
    state = one.init(jax.random.key(0))
    while state.step < 2:
        state, _ = step(one, state)
    checkpoints.save(2, vars(state))
    assert parts(state) == count, parts(state)
    while state.step < 4:
        state, stats = step(one, state)
    for other, count in (((2, 2, 2), 4), ((1, 1, 1), 1), ((1, 4, 2), 8)):
        two = learner(make_mesh(*other))
        like = two.init(jax.random.key(7))
        found = State(**checkpoints.restore(2, vars(like)))
        assert parts(found) == count and found.step == 2
        for leaf, wanted in zip(*map(jax.tree.leaves, (found, like))):
            assert getattr(leaf, "sharding", None) == getattr(wanted, "sharding", None)
        while found.step < 4:
            found, again = step(two, found)
        assert again.keys() == stats.keys()
        for name in stats:
            np.testing.assert_allclose(again[name], stats[name], rtol=1e-5, err_msg=name)
        for one_leaf, leaf in zip(*map(jax.tree.leaves, (state.trained, found.trained))):
            np.testing.assert_allclose(leaf, one_leaf, rtol=1e-5, atol=1e-6)
print("ok")
"""


def test_a_state_in_parts_goes_on_on_another_mesh(tmp_path):
    flags = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", RUN, str(tmp_path / "ckpt")]
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr[-3000:]
