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

# Inside of a job this is a copy: the folder of the script itself is asked of SLURM.
script=$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null | sed -n 's/^ *Command=\([^ ]*\).*/\1/p' | head -1)
here=$(dirname "$(dirname "${script:-${SLURM_SUBMIT_DIR:-.}/slurm/stage.sh}")")
weaksam=${WEAKSAM_BIN:-}
for found in "$here/.venv/bin/weaksam" "${SLURM_SUBMIT_DIR:-.}/.venv/bin/weaksam" "$(command -v weaksam)"; do
  [ -n "$weaksam" ] || [ ! -x "$found" ] || weaksam=$found
done
if [ ! -x "$weaksam" ]; then
  echo "no weaksam command: run make venv in the project's folder, or set WEAKSAM_BIN" >&2
  exit 5
fi
# An array is a map over images: its tasks are shards. How many the work is cut into is declared by slurm/array.sh.
shard=()
[ -z "${WEAKSAM_SHARDS:-}" ] || shard=(--shard "${SLURM_ARRAY_TASK_ID:?}/$WEAKSAM_SHARDS")
echo "$(date '+%F %T') ${SLURM_JOB_NAME:-weaksam} job ${SLURM_JOB_ID:-} on $(hostname), start ${SLURM_RESTART_COUNT:-0}: $* ${shard[*]:-}" >&2

# Several tasks are one launch of several processes, which share the work (see docs/clusters.md).
launch= stop=TERM
if [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
  launch="srun --kill-on-bad-exit=1"
  stop=USR1 # srun passes this one on; on TERM it kills the tasks
fi

# Whether the job is to go on after it has stopped: SLURM's signal before a preemption or the time limit finds it
# RUNNING; scancel finds it COMPLETING, and must not bring it back.
state=
job_state() { scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/.*JobState=\([A-Z]*\).*/\1/p' | head -1; }
stopped() {
  state=${state:-$(job_state)}
  echo "$(date '+%F %T') signal received, job ${state:-unknown}" >&2
  kill -"$stop" "$child" 2>/dev/null
}

# SLURM signals this shell (B:); pass it on and wait: the stage saves its state and exits with 75.
# shellcheck disable=SC2086 # a command and its option, or nothing
$launch "$weaksam" "$@" ${shard[@]+"${shard[@]}"} --resume &
child=$!
trap stopped TERM USR1
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do
  wait "$child"
  code=$?
done

if [ "$code" -eq 75 ]; then
  case ${state:-$(job_state)} in
    COMPLETING | CANCELLED) echo "$(date '+%F %T') cancelled with the state saved" >&2 ;;
    *)
      echo "$(date '+%F %T') stopped with the state saved; asking for a requeue" >&2
      # Fails harmlessly when SLURM has requeued the job by itself, as it does after a preemption.
      scontrol requeue "$SLURM_JOB_ID" && exit 0
      ;;
  esac
fi
exit "$code"
