#!/usr/bin/env bash
# RL on a sequence policy: a Decision Transformer that saw poor play of Reacher2d goes on in the environment.
# Each line continues where it stopped when run again.
set -euo pipefail
out=outputs/sequence_rl
python -m foundation.collect task=reacher2d states.episodes=60 states.scale=0.1 states.noise=0.3 states.noisy=1 \
  states.label=executed out=$out/shards run.dir=$out/collect
python -m foundation.pretrain method=dt data.train=$out/shards run.dir=$out/dt steps=2000 method.net.layout=merged \
  method.net.width=64 method.net.layers=2 method.net.dropout=0 method.optimizer.lr=1e-3
for seed in 0 1 2; do
  python -m foundation.finetune experiment=td3_aux_reacher2d run.seed=$seed
  python -m foundation.finetune experiment=td3_aux_reacher2d run.seed=$seed algo=odt algo.agent.imitation=1 run.name=sequence_rl/odt_seed$seed
done
python -m foundation.report runs=[$out] out=outputs/sequence_rl.html "title=RL on a sequence policy"
