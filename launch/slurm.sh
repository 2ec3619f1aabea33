#!/usr/bin/env bash
#SBATCH --job-name=clip_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#
# Trains on a SLURM cluster, one task a node. Everything after the script goes to the trainer:
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --config=configs/X.py --workdir=DIR
#
# 120 s before the time limit or a pre-emption the trainer gets SIGTERM, saves and exits; the job
# is queued again and resumes in the same workdir. Options of sbatch on its own command line win
# over the lines above. PYTHON names the interpreter (default: .venv/bin/python, else python).
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

config=""
workdir=""
previous=""
for argument in "$@"; do
  case "$argument" in
    --help | -h)
      echo "usage: sbatch [SBATCH OPTIONS] launch/slurm.sh --config=configs/X.py --workdir=DIR [TRAINER FLAGS]"
      exit 0
      ;;
    --config=*) config="${argument#*=}" ;;
    --workdir=*) workdir="${argument#*=}" ;;
  esac
  case "$previous" in
    --config) config="$argument" ;;
    --workdir) workdir="$argument" ;;
  esac
  previous="$argument"
done
[[ -n "$config" ]] || fail "--config is missing; give a config file, such as --config=configs/X.py"
[[ -n "$workdir" ]] || fail "--workdir is missing; give a directory that every node can see"
[[ -n "${SLURM_JOB_ID:-}" ]] || fail "SLURM_JOB_ID is not set; start this script with sbatch"

python="${PYTHON:-}"
if [[ -z "$python" ]]; then
  python=python
  [[ ! -x .venv/bin/python ]] || python=.venv/bin/python
fi
multihost=()
[[ "${SLURM_JOB_NUM_NODES:-1}" -le 1 ]] || multihost=(--multihost)

# SLURM signals this shell only (the "B:"); srun hands a SIGTERM on to every task.
trainer=""
stopped=no
forward() {
  stopped=yes
  [[ -z "$trainer" ]] || kill -TERM "$trainer" 2>/dev/null || true
}
trap forward TERM

srun --kill-on-bad-exit=1 "$python" -m clip_jax.train "$@" ${multihost[@]+"${multihost[@]}"} &
trainer=$!
[[ "$stopped" == no ]] || forward # the signal came before there was anything to signal

while true; do
  status=0
  wait "$trainer" || status=$?
  # A signal cuts the wait short while the trainer is still saving.
  kill -0 "$trainer" 2>/dev/null || break
done

finished() { # the trainer's last act is the export of the newest checkpoint
  [[ -d "$workdir/model" ]] || return 1
  local exported newest=0 name
  exported="$(sed -n 's/^ *"step": *\([0-9]\{1,\}\).*/\1/p' "$workdir/model/config.json" 2>/dev/null)" || true
  for name in "$workdir"/checkpoints/*; do
    name="${name##*/}"
    [[ ! "$name" =~ ^[0-9]+$ || "$name" -le "$newest" ]] || newest="$name"
  done
  [[ -z "$exported" || "$exported" -ge "$newest" ]]
}

if [[ "$stopped" == yes ]] && ! finished; then
  echo "stopped early with status $status; queueing the job again"
  # Where SLURM itself requeues (PreemptMode=REQUEUE) this is refused, and that is fine.
  scontrol requeue "$SLURM_JOB_ID" || true
fi
exit "$status"
