#!/usr/bin/env bash
# The seven stages on a train split as seven jobs, each waiting for the one before:
#   slurm/chain.sh voc07_trainval --device cuda
# Options of sbatch (partition, GPU, time) go into SBATCH_FLAGS: SBATCH_FLAGS='-p gpu --gres=gpu:1' slurm/chain.sh ...
set -euo pipefail

split=${1:?usage: slurm/chain.sh SPLIT [options of weaksam]}
shift
here=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "$here/.venv/bin/python" || echo python3)
stages=$(cd "$here" && "$python" -c 'from stages.core.registry import CHAIN; print(*CHAIN)')
before=
for stage in $stages; do
  # shellcheck disable=SC2086 # SBATCH_FLAGS is a list of words
  before=$(sbatch --parsable ${SBATCH_FLAGS:-} --job-name="weaksam-$stage" ${before:+--dependency=afterok:$before} \
    "$here/slurm/stage.sh" "$stage" --split "$split" "$@")
  echo "$stage: job $before"
done
