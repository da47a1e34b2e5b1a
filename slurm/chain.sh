#!/usr/bin/env bash
# The whole chain as jobs, each waiting for those whose files it reads: the train split, then the test split:
#   slurm/chain.sh voc07_trainval voc07_test --device cuda
#   slurm/chain.sh voc07_trainval --device cuda                   # no test split
# Options of sbatch (partition, GPU, time) go into SBATCH_FLAGS: SBATCH_FLAGS='-p gpu --gres=gpu:1' slurm/chain.sh ...
# Nothing is submitted unless the settings of all stages work.
set -euo pipefail

usage="usage: slurm/chain.sh TRAIN_SPLIT [TEST_SPLIT] [options of weaksam]"
train=${1:?$usage}
shift
test=
case "${1:-}" in -* | "") ;; *) test=$1 && shift ;; esac
here=$(cd "$(dirname "$0")/.." && pwd)
export WEAKSAM_BIN=${WEAKSAM_BIN:-$here/.venv/bin/weaksam}
[ -x "$WEAKSAM_BIN" ] || { echo "no $WEAKSAM_BIN: run make venv, or set WEAKSAM_BIN" >&2; exit 5; }
python=$(dirname "$WEAKSAM_BIN")/python
# Lines such as "prompt/train:cam/train", from the stages' own declarations.
steps=$("$python" -m stages.core.registry)

split_of() { case $1 in */train) echo "$train" ;; *) echo "$test" ;; esac; }

for step in $steps; do
  name=${step%%:*}
  [ -n "$(split_of "$name")" ] || continue
  # What is missing before the chain has begun (exit 3) will be there; settings, machine and folders have to work now.
  code=0
  message=$("$WEAKSAM_BIN" -q "${name%/*}" --split "$(split_of "$name")" "$@" --resume --dry-run 2>&1 >/dev/null) || code=$?
  if [ "$code" -ne 0 ] && { [ "$code" -ne 3 ] || [ "$step" = "$name:" ] || [ "$step" = "$name" ]; }; then
    echo "$message" >&2
    echo "${name%/*} on $(split_of "$name") would fail with $code: nothing is submitted" >&2
    exit "$code"
  fi
done

declare -A job
for step in $steps; do
  name=${step%%:*}
  split=$(split_of "$name")
  [ -n "$split" ] || continue
  after=
  for needed in $(echo "${step#*:}" | tr ',' ' '); do after+=:${job[$needed]}; done
  # A stage whose input failed is cancelled, and so is what follows it, instead of waiting for ever.
  # shellcheck disable=SC2086 # SBATCH_FLAGS is a list of words
  job[$name]=$(sbatch --parsable --kill-on-invalid-dep=yes --job-name="${name%/*}-$split" ${SBATCH_FLAGS:-} \
    ${after:+--dependency=afterok$after} "$here/slurm/stage.sh" "${name%/*}" --split "$split" "$@")
  echo "${name%/*} $split: job ${job[$name]}"
done
