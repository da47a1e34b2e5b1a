#!/usr/bin/env bash
# One stage as one job:   sbatch slurm/stage.sh cam --split voc07_trainval --device cuda
# Add what your cluster wants on the command line: sbatch --partition=gpu --gres=gpu:1 slurm/stage.sh ...
#SBATCH --job-name=weaksam
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --cpus-per-task=4
#SBATCH --signal=B:USR1@120
set -uo pipefail

weaksam=${WEAKSAM_BIN:-${SLURM_SUBMIT_DIR:-.}/.venv/bin/weaksam}
if [ ! -x "$weaksam" ]; then
  echo "no $weaksam: run make venv in the folder you submit from, or set WEAKSAM_BIN" >&2
  exit 5
fi

# Several tasks are one launch of several processes, which share the work (see docs/clusters.md).
launch= stop=TERM
if [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
  launch="srun --kill-on-bad-exit=1"
  stop=USR1 # srun passes this one on; on TERM it kills the tasks
fi

# SLURM signals this shell (B:); pass it on and wait: the stage saves its state and exits with 75.
# shellcheck disable=SC2086 # a command and its option, or nothing
$launch "$weaksam" "$@" --resume &
child=$!
trap 'kill -"$stop" "$child" 2>/dev/null' TERM USR1
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do
  wait "$child"
  code=$?
done

if [ "$code" -eq 75 ]; then
  echo "preempted with the state saved; asking for a requeue" >&2
  # Fails harmlessly when SLURM has requeued the job by itself, as it does after a preemption.
  scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$code"
