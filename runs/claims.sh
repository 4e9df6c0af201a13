#!/usr/bin/env bash
# Everything behind the README's table of claims, in order; each line continues where it stopped when run again.
# About half a day on 2 cores. Seeds: 0, 1, 2 for everything that is trained.
set -euo pipefail
bash runs/play.sh

python -m foundation.pretrain experiment=labeller
python -m pipelines.label clips=outputs/play/shards/video idm=outputs/labeller/seed0 out=outputs/play/labels
python -m pipelines.score labels=outputs/play/labels truth=outputs/play/shards/answers run.dir=outputs/labeller/score
python -m benchmarks.window_position --idm outputs/labeller/seed0 --shards outputs/play/shards/heldout  # R5
python -m benchmarks.label_noise --idm outputs/labeller/seed0 --shards outputs/play/shards/heldout  # R9

for arm in r1_idm r1_bc r4_pseudo r4_oracle r4_small r7_nulls; do
  python -m foundation.pretrain experiment=$arm
done
for policy in outputs/r4/*_seed?; do
  for task in doom_my_way_home doom_freeplay; do
    python -m foundation.evaluate task=$task policy=$policy run.dir=$policy/$task
  done
done
for arm in r6_scratch r6_unanchored r6_anchored; do
  python -m foundation.finetune experiment=$arm
done
python -m foundation.report runs=[outputs/labeller,outputs/r1,outputs/r4,outputs/r6] out=outputs/claims.html title=Claims
