#!/bin/bash
# A job on all hosts of a Cloud TPU slice that exists (gcloud compute tpus tpu-vm create): JAX finds the hosts by itself.
#   export ZONE=europe-west4-b
#   launch/tpu_pod.sh NAME install
#   launch/tpu_pod.sh NAME run --config=configs/gba.py:qwen2_vl_2b --config.prompts_per_step=16 --config.workdir=/mnt/work/gba
#   launch/tpu_pod.sh NAME logs [HOST]
#   launch/tpu_pod.sh NAME stop
# The workdir must be on a file system that all hosts mount, such as Filestore. `run` returns once the job is started, which
# needs no connection from then on; `run` again resumes. `logs` follows what a host prints (0: the one that writes) until the
# job ends. `stop` sends SIGTERM: a checkpoint is saved. SOURCE is what pip installs: a wheel that the hosts can read, or
# git+https://..., and PYTHON a Python of 3.11 or later there (python3). On each host, mmedexpert.log and mmedexpert.pid are in the home directory.
set -euo pipefail
name=${1:?the name of the slice}
action=${2:?install, run, logs or stop}
shift 2
: "${ZONE:?export the zone of the slice, as in: export ZONE=europe-west4-b}"

on_host() { # a host's number or all, and a command
  gcloud compute tpus tpu-vm ssh "$name" --zone="$ZONE" --worker="$1" --command="$2"
}

job='--pidfile mmedexpert.pid --full mmedexpert_jax.launch' # what pgrep and pkill look for
case $action in
  install)
    case ${SOURCE:?set SOURCE} in
      *://*) source="mmedexpert-jax[tpu] @ $SOURCE" ;;
      *) source="${SOURCE}[tpu]" ;;
    esac
    on_host all "${PYTHON:-python3} -m venv ~/venv && ~/venv/bin/pip install -q $(printf %q "$source")"
    ;;
  run)
    command=$(printf '%q ' venv/bin/python -m mmedexpert_jax.launch "$@")
    on_host all "if pgrep $job >/dev/null 2>&1; then echo 'a job runs: stop it first, or follow its logs' >&2; exit 1; fi; \
setsid nohup $command </dev/null >>mmedexpert.log 2>&1 & echo \$! >mmedexpert.pid"
    ;;
  logs) on_host "${1:-0}" "tail --lines=100 --follow --pid=\"\$(cat mmedexpert.pid)\" mmedexpert.log" ;;
  stop) on_host all "pkill --signal TERM $job 2>/dev/null || echo 'no job runs'" ;;
  *)
    echo "no action $action: install, run, logs or stop" >&2
    exit 2
    ;;
esac
