#!/usr/bin/env bash
# A map over images as a job array, one shard per task, from any folder:
#   sbatch --array=0-7 slurm/array.sh propose --split voc07_trainval --device cuda
# The task that finishes last merges. An array with other numbers declares how many shards the work is cut into, so
# that tasks that failed can be done again by their numbers:
#   sbatch --array=3,5 --export=ALL,WEAKSAM_SHARDS=8 slurm/array.sh propose --split voc07_trainval --device cuda
#SBATCH --job-name=weaksam
#SBATCH --output=slurm-%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --cpus-per-task=1
#SBATCH --signal=B:USR1@120
set -uo pipefail

task=${SLURM_ARRAY_TASK_ID:?submit this with --array=0-N}
if [ -z "${WEAKSAM_SHARDS:-}" ]; then
  # 0-7 declares eight; any other list says nothing of how many there are.
  if [ "$SLURM_ARRAY_TASK_MIN" -ne 0 ] || [ "$((SLURM_ARRAY_TASK_MAX + 1))" -ne "$SLURM_ARRAY_TASK_COUNT" ]; then
    echo "how many shards there are is not known: submit --array=0-N, or declare --export=ALL,WEAKSAM_SHARDS=NUMBER" >&2
    exit 2
  fi
  WEAKSAM_SHARDS=$SLURM_ARRAY_TASK_COUNT
fi
if [ "$task" -ge "$WEAKSAM_SHARDS" ]; then
  echo "task $task is none of $WEAKSAM_SHARDS shards, which count from 0" >&2
  exit 2
fi
export WEAKSAM_SHARDS
script=$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null | sed -n 's/^ *Command=\([^ ]*\).*/\1/p' | head -1)
exec bash "$(dirname "${script:-${SLURM_SUBMIT_DIR:-.}/slurm/array.sh}")/stage.sh" "$@"
