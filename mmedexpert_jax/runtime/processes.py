"""The processes of one job: which of them writes, and what they tell each other.

Every process runs the same program on the same data. Process 0 is the writer: it alone touches the run directory. A
job of one process, and whatever runs `alone`, finds every function here to be the identity.

Small values pass through the store of `jax.distributed`'s coordinator, which waits as long as it takes; arrays pass
between devices. JAX has no public name for that store; Orbax and Flax reach it in the same way.
"""

import atexit
import contextlib
import importlib.util
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmedexpert_jax.errors import ConfigError, ResourceError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
LAUNCHER = "MMEDEXPERT_LAUNCHER"  # the process that started this one by `--processes`
DAY = 24 * 60 * 60 * 1000  # milliseconds
EVERY = 2.0  # seconds between two looks at whether another process has failed
GRACE = 10.0  # seconds that the others have to end by themselves when one process fails
_FAILED = "mmedexpert/failed"
_HEARD = "mmedexpert/heard"

_index, _count, _alone = 0, 1, False
_numbers = itertools.count()
_failure: tuple[str, int] | None = None  # of another process
_ended = threading.Event()  # this process is on its way out


def start() -> None:
    """Joins the other processes of the job, where the environment names them; to be called before JAX has a backend.

    It does so by the three VARIABLES, or by JAX's own detection (SLURM, Open MPI, Kubernetes, TPU pods).

    Raises:
        ConfigError: variables that are incomplete or no numbers.
        ResourceError: the others cannot be reached.
    """
    global _index, _count
    given = _given()
    scheduled = bool(given) or _scheduled()
    if not scheduled and not _on_tpu():
        return
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM, which is Signals' to handle
    try:
        jax.distributed.initialize(**given)
    except (RuntimeError, ValueError) as error:
        if not scheduled:  # a TPU without a cluster around it
            return
        line = str(error).splitlines()[0]
        raise ResourceError(
            f"cannot join the processes of the job: {line}; set {', '.join(VARIABLES)}, or see docs/cluster.md"
        ) from error
    _index, _count = jax.process_index(), jax.process_count()
    if _count > 1:
        watcher = threading.Thread(target=_watch, daemon=True)
        watcher.start()
        atexit.register(watcher.join)
        atexit.register(_ended.set)  # the last one registered is called first


def index() -> int:
    """This process's number, from 0."""
    return 0 if _alone else _index


def count() -> int:
    """Processes of the job."""
    return 1 if _alone else _count


def is_writer() -> bool:
    """True in the process that writes files and reports."""
    return index() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A context in which nothing waits for the other processes."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextlib.contextmanager
def log(folder: Path) -> Iterator[None]:
    """A context whose output, of a process that is not the writer, goes to the end of a file of its own in `folder`."""
    if is_writer():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"process-{index()}.log").open("a", buffering=1)
    with file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


def devices() -> list[Any]:
    """The devices of the job, or, `alone`, of this process."""
    import jax

    return jax.local_devices() if _alone else jax.devices()


def barrier() -> None:
    """Waits until all processes are here."""
    if count() > 1:
        _client().wait_at_barrier(f"mmedexpert/{next(_numbers)}", DAY)


def agree(value: Any) -> Any:
    """The writer's JSON value, a small one, in every process; it may take its time."""
    if count() == 1:
        return value
    key = f"mmedexpert/{next(_numbers)}"
    if is_writer():
        _client().key_value_set(key, json.dumps(value))
        return value
    return json.loads(_client().blocking_key_value_get(key, DAY))


def gather(value: Any) -> list[Any]:
    """The JSON values of all processes, in their order."""
    if count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    barrier()  # collectives on CPU give up after a while, so that nobody should come to one much later than others
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = process_allgather(np.array([len(data)]), tiled=True)
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    padded[: len(data)] = data
    return [json.loads(row[:size].tobytes()) for row, size in zip(process_allgather(padded), sizes, strict=True)]


def largest(value: int) -> int:
    """The largest of all processes' values."""
    if count() == 1:
        return value
    from jax.experimental.multihost_utils import process_allgather

    return int(process_allgather(np.array([value], np.int32), tiled=True).max())


def heard(value: int) -> int:
    """The value of a process that has one other than 0, as far as it is known here, without waiting for any of them;
    one's own is told to the others."""
    if count() == 1:
        return value
    if value:
        with contextlib.suppress(Exception):  # another one was first
            _client().key_value_set(_HEARD, str(value))
        return value
    with contextlib.suppress(Exception):  # the key is not there
        return int(_client().key_value_try_get(_HEARD))
    return 0


def concatenate(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, as many from each."""
    if count() == 1:
        return rows
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(rows, tiled=True)


def own(things: Sequence[Any]) -> Sequence[Any]:
    """This process's share: every `count`-th."""
    return things[index() :: count()]


def block(size: int) -> slice:
    """This process's share of `size` rows, a multiple of the processes: those that follow one another."""
    return slice(index() * size // count(), (index() + 1) * size // count())


def total(tree: Any) -> Any:
    """The sum over processes of a tree of arrays that each has for itself; afterwards each has the sum for itself."""
    if count() == 1:
        return tree
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    jax.block_until_ready(tree)
    barrier()  # as in `gather`: one that had nothing to compute comes long before one that had to compile
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.array([firsts[i] for i in range(count())]), "processes")
    split, whole = (NamedSharding(mesh, PartitionSpec(*names)) for names in (("processes",), ()))

    def spread(leaf: Any) -> jax.Array:
        leaf = jax.device_put(jax.numpy.asarray(leaf)[None], firsts[index()])
        return jax.make_array_from_single_device_arrays((count(), *leaf.shape[1:]), split, [leaf])

    summed = jax.jit(_sum, out_shardings=whole)(jax.tree.map(spread, tree))
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), summed)


def put(array: Any, sharding: Any) -> Any:
    """An array that every process has whole, placed on devices of any of them; None: where JAX puts it.

    A shape, as a plan and a compilation have it, is placed without an array.
    """
    import jax

    if isinstance(array, jax.ShapeDtypeStruct):
        return array.update(sharding=sharding)
    if sharding is None or sharding.is_fully_addressable or _elsewhere(array):
        return jax.device_put(array, sharding)
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda shard: array[shard])


def whole(tree: Any) -> Any:
    """The tree with every array readable in this process: what is sharded over several of them is gathered."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    def read(leaf: Any) -> Any:
        if not _elsewhere(leaf) or leaf.is_fully_replicated:
            return leaf
        return jax.device_put(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))

    return jax.tree.map(read, tree)


def local(tree: Any) -> Any:
    """The tree on this process's devices alone: sharded where they hold all of it, else whole on each of them."""
    import jax
    from jax.sharding import NamedSharding

    if any(_spans(leaf) for leaf in jax.tree.leaves(tree) if _elsewhere(leaf)):
        tree = whole(tree)
    replicated = all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree) if _elsewhere(leaf))

    def here(leaf: Any) -> Any:
        if not _elsewhere(leaf):
            return leaf
        shards = [shard.data for shard in leaf.addressable_shards]
        mesh = _in_a_row(leaf) if replicated else leaf.sharding.mesh.local_mesh
        return jax.make_array_from_single_device_arrays(leaf.shape, NamedSharding(mesh, leaf.sharding.spec), shards)

    return jax.tree.map(here, tree)


def _in_a_row(leaf: Any) -> Any:
    """A mesh of this process's devices, which need not be a block of the array's, as `local_mesh` demands."""
    from jax.sharding import Mesh

    devices, mesh = [shard.device for shard in leaf.addressable_shards], leaf.sharding.mesh
    row = np.reshape(devices, (-1, *[1] * (len(mesh.axis_names) - 1)))
    return Mesh(row, mesh.axis_names, axis_types=mesh.axis_types)


def _spans(leaf: Any) -> bool:
    """True where the shards of an array lie in several processes; False where each of these has all of them."""
    mesh, names = leaf.sharding.mesh, np.hstack([axis for axis in leaf.sharding.spec if axis] or [[]]).tolist()
    return any(mesh.local_mesh.shape[name] < mesh.shape[name] for name in names)


def named() -> bool:
    """True where the VARIABLES name this process."""
    return VARIABLES[1] in os.environ


def signed(line: str) -> str:
    """A line for people, with the process that says it where there are several."""
    return line if _count == 1 else f"process {_index}: {line}"


def failure() -> tuple[str, int] | None:
    """The last line and the exit code of another process that failed, given time to be heard of; None: none has."""
    if _count > 1 and _failure is None:
        time.sleep(1.5 * EVERY)  # the watch looks every EVERY seconds: one look, with room
    return _failure


def leave(line: str, code: int) -> None:
    """Ends this process with `code`, after telling the others why, who then end too; returns in a job of one."""
    if _count == 1:
        return
    _ended.set()
    with contextlib.suppress(Exception):  # another one was first, or the coordinator is gone
        _client().key_value_set(_FAILED, json.dumps([signed(line), code]))
    _exit(code)


def _watch() -> None:
    """Ends this process when another one fails; a collective would wait for it for ever. Where the launcher is gone,
    which passes the signals on, the job saves and stops as at SIGTERM: nobody could stop it any more."""
    global _failure
    launcher = int(os.environ.get(LAUNCHER, "0"))
    while not _ended.wait(EVERY):
        if launcher and os.getppid() != launcher:
            launcher = 0  # a second SIGTERM would kill
            os.kill(os.getpid(), signal.SIGTERM)
        with contextlib.suppress(Exception):  # the key is not there
            line, code = json.loads(_client().key_value_try_get(_FAILED))
            _failure = line, code
            if not _ended.wait(GRACE / 2):
                print(signed(f"ends, as {line}"), file=sys.__stderr__)
                _exit(code)


def _exit(code: int) -> None:
    """Leaves without JAX's shutdown, which would wait for minutes; process 0, the coordinator, is the last."""
    with contextlib.suppress(Exception):
        _client().wait_at_barrier("mmedexpert/end", int(GRACE * 1000))
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(Exception):
            stream.flush()  # type: ignore[union-attr]
    if _index == 0:
        time.sleep(1)
    os._exit(code)


def _given() -> dict[str, Any]:
    """The values of the VARIABLES; empty where they are not set."""
    values = [os.environ.get(name, "") for name in VARIABLES]
    if not values[1] and not values[2]:  # the address alone may help JAX's detection
        return {}
    address, *numbers = values
    if not address or not all(number.isdigit() for number in numbers):
        raise ConfigError(f"{', '.join(VARIABLES)} are to be set together: host:port and two numbers; got {values}")
    return {"coordinator_address": address, "num_processes": int(numbers[0]), "process_id": int(numbers[1])}


def _scheduled() -> bool:
    """True where SLURM, Open MPI or Kubernetes started this process as one of several; JAX finds the others."""
    found = os.environ.get
    return (
        ("SLURM_STEP_NODELIST" in os.environ and found("SLURM_NTASKS", "1") != "1")
        or found("OMPI_COMM_WORLD_SIZE", "1") != "1"
        or ("KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ)
    )


def _on_tpu() -> bool:
    """True on a machine with TPUs, which may be one of a slice's; JAX asks the metadata server."""
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _client() -> Any:
    from jax._src.distributed import global_state

    return global_state.client


def _elsewhere(leaf: Any) -> bool:
    """True where shards of an array lie on devices of other processes."""
    return hasattr(leaf, "is_fully_addressable") and not leaf.is_fully_addressable


def _sum(tree: Any) -> Any:
    import jax

    return jax.tree.map(lambda leaf: leaf.sum(0), tree)
