#!/usr/bin/env bash
# Decision Transformers on Reacher2d: (1) asked for more, they get more, and beat cloning of mixed play; (2) on 95 %
# random and 5 % expert play, which way of drawing episodes finds the expert. Every finished line is skipped when run again.
# All of it: 9 arms x 3 seeds of about 2 minutes on one core. Fewer: SEEDS=0 runs/dt.sh
set -euo pipefail
. "$(dirname "$0")/once.sh"
out=${OUT:-outputs/dt}
more=${MORE:-}  # further overrides of every training, e.g. trainer=gpu
played=${PLAYED:-50}

collect="python -m foundation.collect task=reacher2d states.label=executed"
once $out/collect_mixed $collect states.episodes=200 states.scale=[0.05,0.15,0.3,1] states.noisy=1 run.seed=1 out=$out/data/mixed
once $out/collect_rare  $collect states.episodes=1000 'states.mix={expert: 0.05, random: 0.95}' run.seed=2 out=$out/data/rare

arm() {  # arm <name> <overrides ...>: train with every seed, ask for several returns; cloning listens to none
  local name=$1
  shift
  for seed in ${SEEDS:-0 1 2}; do
    once $out/$name/seed$seed python -m foundation.pretrain experiment=dt_reacher2d run.seed=$seed "$@" $more
    local targets=[0,10,20,30,40,50,60,70,80,q1]
    [[ " $* " == *condition=none* ]] && targets=null
    once $out/$name/seed$seed/played python -m foundation.evaluate task=reacher2d policy=$out/$name/seed$seed target=$targets episodes=$played baselines=[]
  done
}
arm mixed/dt
arm mixed/delayed data.condition=delayed
arm mixed/bc      data.condition=none
arm mixed/bc10    data.condition=none data.sampling=topk

rare="data.train=$out/data/rare method.net.layout=merged"  # a third of the work
for sampling in length return advantage topk; do
  arm rare/bc_$sampling $rare data.condition=none data.sampling=$sampling
done
arm rare/dt_length $rare
once $out/baselines python -m foundation.evaluate task=reacher2d policy=player baselines=[random,noop] episodes=$played
python -m foundation.report run.dir=$out/report runs=[$out] out=$out/report.html "title=Decision Transformers"
