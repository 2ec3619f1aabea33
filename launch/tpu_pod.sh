#!/usr/bin/env bash
# Trains on every worker of a Cloud TPU VM or pod slice. See --help.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/tpu_pod.sh --name=TPU --zone=ZONE --config=configs/X.py --workdir=DIR [options] [-- trainer flags]
  --name, --zone, --project      the TPU VM             ($TPU_NAME, $TPU_ZONE, $TPU_PROJECT)
  --type=v5p-128, --version=…    create it if it is absent or was pre-empted   ($TPU_TYPE, $TPU_VERSION)
  --spot                         create it as a spot TPU
  --revision=COMMIT              what to install (default: HEAD of this checkout; sent from here, no remote needed)
  --watch[=SECONDS]              stay, and bring TPU and training back after a pre-emption, until the end
Sends the revision to all workers, installs '.[tpu]' and starts `python -m clip_jax.train --multihost` in the
background; output: ~/clip_jax/train.log on each worker. A trainer that fails starts again and resumes from
--workdir, which every worker must see (NFS, a mounted bucket). Running this again never starts a second trainer.
END
}
fail() {
  echo "error: $1" >&2
  exit 2
}

name="${TPU_NAME:-}" zone="${TPU_ZONE:-}" project="${TPU_PROJECT:-}" type="${TPU_TYPE:-}"
version="${TPU_VERSION:-}" config="" workdir="" revision=HEAD watch="" create=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --name=* | --zone=* | --project=* | --type=* | --version=* | --config=* | --workdir=* | --revision=* | --watch=*)
      flag="${1%%=*}"
      printf -v "${flag#--}" %s "${1#*=}"
      ;;
    --spot) create+=(--spot) ;;
    --watch) watch=60 ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "$1: not a flag of this script; --help lists them, and the trainer's come after --" ;;
  esac
  shift
done
for required in name zone config workdir; do
  [[ -n "${!required}" ]] || fail "--$required is missing; --help shows an example"
done
[[ -z "$watch" || -n "$type" ]] || fail "--watch needs --type and --version, to create the TPU again"
[[ "$watch" =~ ^[0-9]*$ ]] || fail "--watch=$watch: give whole seconds"
[[ -z "$type" || -n "$version" ]] || fail "--type=$type also needs --version, such as v2-alpha-tpuv5"
where=(--zone="$zone" ${project:+--project="$project"})
cd "$(dirname "${BASH_SOURCE[0]}")/.."
commit="$(git rev-parse --verify --quiet "$revision^{commit}")" || fail "--revision=$revision: no such commit here"
git diff --quiet HEAD || echo "note: changes that are not committed stay here; sending $commit" >&2
archive="$(mktemp -d)"
trap 'rm -rf "$archive"' EXIT
git archive --format=tar.gz -o "$archive/clip_jax-$commit.tar.gz" "$commit"
arguments="$(printf '%q ' --config="$config" --workdir="$workdir" --multihost "$@")"

# What every worker runs. A lock, inherited by the trainer, keeps a second one away.
remote="$(cat <<END
set -eu; cd ~/clip_jax; export PATH="\$HOME/.local/bin:\$PATH"
exec 9>lock; flock -n 9 || { echo "already running; log: ~/clip_jax/train.log"; exit 0; }
rm -f exit_code
if [ ! -e $commit/installed ]; then
  mkdir -p $commit && tar -xzf ~/clip_jax-$commit.tar.gz -C $commit
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  (cd $commit; uv venv -q --clear --python 3.12 .venv; uv pip install -q --python .venv/bin/python -c constraints/py312.txt '.[tpu]')
  touch $commit/installed
fi
cat >train.sh <<'LOOP'
cd ~/clip_jax/$commit; while true; do
  code=0; .venv/bin/python -m clip_jax.train $arguments || code=\$?
  # Done, or a mistake that stays one. A machine's shutdown ends this loop before it gets here.
  case \$code in 0 | 2) echo \$code >../exit_code; exit ;; esac
  echo "trainer ended with status \$code; starting again"; sleep 20
done
LOOP
nohup bash train.sh >>train.log 2>&1 </dev/null &
echo "started; log: ~/clip_jax/train.log"
END
)"
tpu() { gcloud compute tpus tpu-vm "$1" "$name" "${where[@]}" "${@:2}"; }
on_workers() { gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"; }
start() { # brings the TPU up and the trainer with it; harmless where both are there
  local state
  state="$(tpu describe --format='value(state)' 2>/dev/null || true)"
  if [[ "$state" == PREEMPTED || "$state" == TERMINATED || -z "$state" ]]; then
    [[ -n "$type" ]] || fail "--name=$name: no running TPU of this name in $zone; give --type and --version to create it"
    [[ -z "$state" ]] || tpu delete --quiet || return
    tpu create --accelerator-type="$type" --version="$version" ${create[@]+"${create[@]}"} || return
  fi
  on_workers all "mkdir -p ~/clip_jax" || return
  gcloud compute tpus tpu-vm scp "$archive/clip_jax-$commit.tar.gz" "$name:" "${where[@]}" --worker=all || return
  on_workers all "$remote"
}
[[ -n "$watch" ]] || { start || exit 1; exit 0; }
probe="cd ~/clip_jax && { flock -n lock true && { cat exit_code 2>/dev/null || echo idle; } || echo running; }" # a lock that is free was freed after exit_code came
code=idle
while true; do
  [[ "$code" == running ]] || start || echo "the TPU is not to be had now; trying again in $watch s" >&2
  sleep "$watch"
  code="$(on_workers 0 "$probe" 2>/dev/null || echo idle)" # no answer: look at the TPU itself
  [[ ! "$code" =~ ^[0-9]+$ ]] || { echo "trainer ended with status $code" && exit "$code"; }
done
