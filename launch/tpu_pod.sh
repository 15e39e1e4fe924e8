#!/bin/bash
# A job on all hosts of a Cloud TPU slice that exists (gcloud compute tpus tpu-vm create): JAX finds the hosts by itself.
#   ZONE=europe-west4-b launch/tpu_pod.sh NAME install
#   ZONE=europe-west4-b launch/tpu_pod.sh NAME run --config=configs/gba.py:qwen2_vl_2b --config.workdir=/mnt/work/gba
#   ZONE=europe-west4-b launch/tpu_pod.sh NAME stop
# The workdir must be on a file system that all hosts mount, such as Filestore. `run` again resumes. `stop` sends SIGTERM:
# a checkpoint is saved. SOURCE is what pip installs: a wheel that the hosts can read, or git+https://...
set -euo pipefail
name=${1:?the name of the slice}
action=${2:?install, run or stop}
shift 2

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="${ZONE:?set ZONE}" --worker=all --command="$1"
}

case $action in
  install) on_all_hosts "python3 -m venv ~/venv && ~/venv/bin/pip install -q 'mmedexpert-jax[tpu] @ ${SOURCE:?set SOURCE}'" ;;
  run) on_all_hosts "$(printf '%q ' exec venv/bin/python -m mmedexpert_jax.launch "$@")" ;;
  stop) on_all_hosts "pkill --signal TERM --full 'python -m [m]medexpert_jax.launch' || true" ;;
  *)
    echo "no action $action: install, run or stop" >&2
    exit 2
    ;;
esac
