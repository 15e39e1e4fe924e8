"""What launch/ holds for schedulers: shell that parses, options that exist, manifests with the fields of their APIs."""

import os
import re
import shlex
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from mmedexpert_jax import errors

FOLDER = Path(__file__).parents[2] / "launch"
# sbatch(1) of SLURM 24.11
SBATCH = (
    *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "time"),
    *("requeue", "signal", "open-mode"),
)
# Fields of JobSet v1alpha2 (github.com/kubernetes-sigs/jobset, config/components/crd, commit 08dfbdf) and of what it
# embeds (Kubernetes' Job and Pod, API v1) that the manifest uses: name -> type, or the fields below; [..] are lists.
# The manifest was also held to the whole published schema, with unknown fields refused.
CONTAINER = {
    "name": str, "image": str, "args": [str], "env": [{"name": str, "value": str}],
    "resources": {"limits": {"nvidia.com/gpu": int}}, "volumeMounts": [{"name": str, "mountPath": str}],
}  # fmt: skip
POD = {
    "serviceAccountName": str, "restartPolicy": str, "terminationGracePeriodSeconds": int,
    "securityContext": {"fsGroup": int}, "containers": [CONTAINER],
    "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}, "emptyDir": {"medium": str}}],
}  # fmt: skip
EXIT_CODES = {"containerName": str, "operator": str, "values": [int]}
JOB = {
    "completionMode": str, "completions": int, "parallelism": int, "backoffLimit": int, "template": {"spec": POD},
    "podFailurePolicy": {"rules": [{"action": str, "onExitCodes": EXIT_CODES}]},
}  # fmt: skip
JOBSET = {
    "apiVersion": str, "kind": str, "metadata": {"name": str},
    "spec": {
        "failurePolicy": {
            "maxRestarts": int, "rules": [{"name": str, "action": str, "onJobFailureReasons": [str]}]
        },
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}  # fmt: skip


def wrong(value, schema, path="") -> list[str]:
    """Paths of a manifest that are no fields of its schema, or of another type."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [path]
        unknown = [f"{path}.{name}" for name in value.keys() - schema.keys()]
        return unknown + [
            p for name in value.keys() & schema.keys() for p in wrong(value[name], schema[name], f"{path}.{name}")
        ]
    if isinstance(schema, list):
        return [path] if not isinstance(value, list) else [p for item in value for p in wrong(item, schema[0], path)]
    return [] if type(value) is schema else [path]


@pytest.fixture(scope="module")
def jobset() -> dict:
    documents = {document["kind"]: document for document in yaml.safe_load_all((FOLDER / "jobset.yaml").read_text())}
    binding = documents["RoleBinding"]
    assert documents.keys() == {"ServiceAccount", "Role", "RoleBinding", "JobSet"}
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "Role",
        "name": documents["Role"]["metadata"]["name"],
    }
    assert binding["subjects"][0]["name"] == documents["ServiceAccount"]["metadata"]["name"]
    return documents["JobSet"]


def test_the_jobset_has_fields_of_its_api_alone(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert wrong(jobset, JOBSET) == []
    jobset["spec"]["replicatedJobs"][0]["replica"] = 1
    assert wrong(jobset, JOBSET) == [".spec.replicatedJobs.replica"]
    del jobset["spec"]["replicatedJobs"][0]["replica"]


def test_the_jobset_restarts_what_was_lost_and_not_what_is_wrong(jobset):
    """What JAX's detection asks for (jax/_src/clusters/k8s_cluster.py), and our exit codes."""
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    assert workers["replicas"] == 1 and job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy takes no other
    (rule,) = job["podFailurePolicy"]["rules"]
    final = [errors.ConfigError, errors.DataError, errors.ResourceError, errors.RemoteError]
    assert rule["onExitCodes"]["values"] == [error.exit_code for error in final]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("script", ["slurm.sbatch", "tpu_pod.sh"])
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", str(FOLDER / script)], check=True)


def test_sbatch_options():
    lines = (FOLDER / "slurm.sbatch").read_text().splitlines()
    options = dict(
        re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line).groups() for line in lines if "#SBATCH " in line[:8]
    )
    assert set(options) <= set(SBATCH)
    assert {"requeue", "signal"} <= set(options) and options["signal"] == "TERM@120"
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:]), "sbatch reads none after a command"


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (3, False), (4, False), (143, True)])
def test_sbatch_requeues_after_sigterm_alone(tmp_path, code, requeued):
    """The script itself, with stand-ins of srun and scontrol."""
    for name, text in (("srun", f"exit {code}"), ("scontrol", f"echo $@ > {tmp_path}/requeued")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", str(FOLDER / "slurm.sbatch")], env=environment, check=False)
    assert done.returncode == code
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_tpu_script_runs_on_all_hosts(tmp_path):
    (tmp_path / "gcloud").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/asked\n')
    (tmp_path / "gcloud").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ZONE": "z"}
    command = [
        "bash",
        str(FOLDER / "tpu_pod.sh"),
        "slice",
        "run",
        "--config=configs/gba.py",
        "--config.workdir=/mnt/a b",
    ]
    subprocess.run(command, env=environment, check=True)
    *asked, last = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=z", "--worker=all"]
    assert r"-m mmedexpert_jax.launch --config=configs/gba.py --config.workdir=/mnt/a\ b" in last
    assert subprocess.run([*command[:3], "fly"], env=environment, check=False, capture_output=True).returncode == 2
    del environment["ZONE"]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 1 and "export ZONE=" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("cores", ["8", ""])
def test_srun_is_told_the_cores_of_a_process(tmp_path, cores):
    (tmp_path / "srun").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/asked\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": cores}
    subprocess.run(["bash", str(FOLDER / "slurm.sbatch"), "--config=a b"], env=environment, check=True)
    first, *_, last = (tmp_path / "asked").read_text().splitlines()
    assert (first == "--cpus-per-task=8") == bool(cores) and last == "--config=a b"


@pytest.mark.parametrize("source", ["git+https://host/owner/name", "/mnt/w x/mmedexpert_jax-0.1.0-py3-none-any.whl"])
def test_tpu_script_installs_what_pip_takes(tmp_path, source):
    """A requirement is an address behind a name, or the path of a wheel with its extra (PEP 508 has no paths)."""
    (tmp_path / "gcloud").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/asked\n')
    (tmp_path / "gcloud").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ZONE": "z", "SOURCE": source}
    subprocess.run(["bash", str(FOLDER / "tpu_pod.sh"), "slice", "install"], env=environment, check=True)
    *_, last = (tmp_path / "asked").read_text().splitlines()
    requirement = shlex.split(last)[-1]
    if "://" in source:
        assert Requirement(requirement).url == source and Requirement(requirement).extras == {"tpu"}
    else:
        assert requirement == f"{source}[tpu]"


@pytest.fixture
def tpu(tmp_path):
    """Runs the script's action on two hosts, folders here, whose program only waits for SIGTERM."""
    for host in ("host0", "host1"):
        program = tmp_path / host / "venv" / "bin" / "python"
        program.parent.mkdir(parents=True)
        program.write_text('#!/bin/bash\ntrap "echo saved; exit 143" TERM\necho "$@"\nwhile sleep 0.05; do :; done\n')
        program.chmod(0o755)
    hosts = 'worker=${7#--worker=}; [ "$worker" = all ] && worker="0 1"'
    loop = f'for n in $worker; do (cd "{tmp_path}/host$n" && bash -c "${{8#--command=}}") || exit; done'
    (tmp_path / "gcloud").write_text(f"#!/bin/bash\n{hosts}\n{loop}\n")
    (tmp_path / "gcloud").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ZONE": "z"}

    def act(*arguments):
        command = ["bash", str(FOLDER / "tpu_pod.sh"), "slice", *arguments]
        return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)

    yield act
    act("stop")


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_tpu_job_outlives_its_connection_and_is_followed_and_stopped(tpu, tmp_path):
    assert tpu("run", "--config.workdir=/mnt/a b").returncode == 0
    logs = [tmp_path / host / "mmedexpert.log" for host in ("host0", "host1")]
    wait_for(lambda: all(log.read_text() for log in logs))
    numbers = [int(log.with_suffix(".pid").read_text()) for log in logs]
    assert [os.getsid(number) for number in numbers] == numbers  # no terminal and no connection can hang up on them
    again = tpu("run")
    assert again.returncode == 1 and "a job runs" in again.stderr
    with ThreadPoolExecutor() as pool:
        following = pool.submit(tpu, "logs", "1")
        assert tpu("stop").returncode == 0
        lines = following.result().stdout.splitlines()  # it returns when the job ends
    assert lines == ["-m mmedexpert_jax.launch --config.workdir=/mnt/a b", "saved"]
    wait_for(lambda: tpu("stop").stdout.splitlines() == ["no job runs"] * 2)
    assert tpu("run", "--config.seed=1").returncode == 0
    wait_for(lambda: logs[0].read_text().splitlines() == [*lines, "-m mmedexpert_jax.launch --config.seed=1"])


def test_dockerfile():
    text = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    names = [name for name, _ in steps]
    known = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "USER", "STOPSIGNAL", "ENTRYPOINT"}
    assert names[0] == "FROM" and set(names) <= known
    last = dict(steps)
    assert ":" in last["FROM"] and last["STOPSIGNAL"] == "SIGTERM" and last["USER"] != "root"
    assert yaml.safe_load(last["ENTRYPOINT"]) == [
        "python",
        "-m",
        "mmedexpert_jax.launch",
    ]  # no shell, so that signals arrive
    for name, argument in steps:
        if name == "COPY":
            assert all((FOLDER.parent / source).exists() for source in argument.split()[:-1])
