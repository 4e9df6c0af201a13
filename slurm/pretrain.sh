#!/usr/bin/env bash
# sbatch slurm/pretrain.sh method=vpt data.train=<shards> ...     arguments go to python -m foundation.pretrain
#   several processes:  sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 slurm/pretrain.sh trainer=ddp ...
#   one GPU:            sbatch --gpus-per-node=1 slurm/pretrain.sh trainer=gpu ...
#   cluster's own:      SBATCH_PARTITION, SBATCH_ACCOUNT in the environment, or --partition, --account
# Without data.train a few minutes of play are recorded and an inverse-dynamics model is trained on them.
#SBATCH --job-name=pretrain
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
without_slurm="python -m foundation.pretrain"
source "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}/slurm/common.sh"

[ -n "$(override run.dir "$@")$(override run.name "$@")" ] || set -- "$@" "run.dir=outputs/$job"
if [ -z "$(override data.train "$@")$(override experiment "$@")" ]; then
  play=outputs/$job-play
  python -m foundation.collect run.dir="$play/train" hours=0.2 also='[doom_my_way_home]' run.seed=1
  python -m foundation.collect run.dir="$play/heldout" hours=0.05 split=heldout run.seed=2
  for part in train heldout; do
    python -m pipelines.ingest run.dir="$play/ingest_$part" videos="$play/$part/plays" out="$play/shards/$part"
  done
  set -- data.train="$play/shards/train" data.validation="$play/shards/heldout" steps=450 "$@"
fi
train -m foundation.pretrain "$@"
