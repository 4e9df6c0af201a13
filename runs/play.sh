#!/usr/bin/env bash
# The data of the experiments: 5 h of labelled play, 3 h of video, 20 minutes on held-out maps.
set -euo pipefail
out=${OUT:-outputs/play}
python -m foundation.collect run.dir=$out/collect_labelled hours=4    run.seed=101
python -m foundation.collect run.dir=$out/collect_labelled_home hours=1 task=doom_my_way_home run.seed=101
python -m foundation.collect run.dir=$out/collect_video    hours=3    also=[doom_my_way_home] run.seed=102 labelled=false answers=$out/answers
python -m foundation.collect run.dir=$out/collect_heldout  hours=0.34 split=heldout run.seed=103
python -m pipelines.ingest run.dir=$out/ingest_labelled videos=[$out/collect_labelled/plays,$out/collect_labelled_home/plays] out=$out/shards/labelled
for part in video heldout; do
  python -m pipelines.ingest run.dir=$out/ingest_$part videos=$out/collect_$part/plays out=$out/shards/$part
done
python -m pipelines.ingest run.dir=$out/ingest_answers videos=$out/collect_video/plays logs=$out/answers out=$out/shards/answers
