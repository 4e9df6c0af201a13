#!/usr/bin/env bash
# sbatch --array=0-7 slurm/label.sh clips=<shards> idm=<model> out=<folder> ...    arguments go to python -m pipelines.label
# Any number of tasks for any number of shards. A failed task is run again alone, while the others go on or long after:
#   scontrol requeue <job>_3                                          while Slurm remembers the job
#   sbatch --array=3 slurm/label.sh world_size=8 clips=... idm=... out=...   later; world_size = tasks of the first array
#   python -m pipelines.label world_size=8 dry_run=true clips=... ...        says which tasks are not done
#SBATCH --job-name=label
#SBATCH --array=0-3
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.out
set -euo pipefail
without_slurm="python -m pipelines.label"
source "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}/slurm/common.sh"

rank=${SLURM_ARRAY_TASK_ID:-0}
tasks=$(override world_size "$@")
if [ -z "$tasks" ]; then
  tasks=${SLURM_ARRAY_TASK_COUNT:-1}
  if [ $((${SLURM_ARRAY_TASK_MAX:-0} + 1)) != "$tasks" ]; then
    echo "tasks are not numbered 0 to $((tasks - 1)): to run some of an array again, add world_size=<number of tasks" \
      "of the whole array>" >&2
    exit 2
  fi
fi
folder=$(override run.dir "$@")
folder=${folder:+$folder/$rank}
srun python -m pipelines.label "$@" rank="$rank" world_size="$tasks" run.dir="${folder:-outputs/$job}"
