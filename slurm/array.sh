#!/usr/bin/env bash
# A map over images as a job array, one shard per task:
#   sbatch --array=0-7 slurm/array.sh propose --split voc07_trainval --device cuda
# The task that finishes last merges; submit the same array again if a task failed.
#SBATCH --job-name=weaksam
#SBATCH --output=slurm-%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --cpus-per-task=4
#SBATCH --signal=B:USR1@120
set -uo pipefail

first=${SLURM_ARRAY_TASK_MIN:?submit this with --array=0-N}
shard=$((SLURM_ARRAY_TASK_ID - first))/$SLURM_ARRAY_TASK_COUNT
exec bash "${SLURM_SUBMIT_DIR:-.}/slurm/stage.sh" "$@" --shard "$shard"
