#!/usr/bin/env bash
# sbatch slurm/finetune.sh task=doom_my_way_home algo=ppo init=<policy> ...    arguments go to python -m foundation.finetune
#   one GPU:        sbatch --gpus-per-node=1 slurm/finetune.sh trainer=gpu ...
#   cluster's own:  SBATCH_PARTITION, SBATCH_ACCOUNT in the environment, or --partition, --account
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@90
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
without_slurm="python -m foundation.finetune"
source "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}/slurm/common.sh"

[ -n "$(override run.dir "$@")$(override run.name "$@")" ] || set -- "$@" "run.dir=outputs/$job"
train -m foundation.finetune "$@"
