#!/usr/bin/env bash
# L2M in miniature on Meta-World: ten tasks to pretrain on, five of Continual World one after another, several methods.
# A finished line is skipped when run again, an unfinished one goes on. Fewer: METHODS="l2m" SEEDS=0 bash runs/l2m.sh.
# The paper's size, for a GPU: SIZE="method.net.width=768 method.net.layers=6 method.net.heads=12", MORE="trainer=gpu".
# One core: 27 minutes until the policy of ten tasks is trained, then about 12 a method and seed.
set -euo pipefail
. "$(dirname "$0")/once.sh"
out=${OUT:-outputs/l2m_cw}
size=${SIZE:-method.net.width=128 method.net.heads=2}
more=${MORE:-data.batch_size=64}  # further overrides of every training, e.g. trainer=gpu
pretraining=${PRETRAINING:-reach,drawer-open,drawer-close,door-open,button-press-topdown,window-open,faucet-open,handle-press,coffee-button,plate-slide}
sequence=${SEQUENCE:-faucet-close,handle-press-side,push,window-close,peg-unplug-side}
retained=${RETAINED:-reach,drawer-close,button-press-topdown}

# scripted play, half of the episodes disturbed, failures kept: about 2 minutes on 2 cores
play="task=metaworld states.episodes=${EPISODES:-20}"
once $out/collect_pretraining python -m foundation.collect $play task.name=[$pretraining] out=$out/data/pretraining run.seed=1
once $out/collect_tasks       python -m foundation.collect $play task.name=[$sequence] out=$out/data/tasks run.seed=2

once $out/mddt python -m foundation.pretrain method=mddt data.train=$out/data/pretraining steps=${PRETRAIN_STEPS:-10000} method.net.dropout=0 method.optimizer.lr=1e-3 method.optimizer.warmup_steps=100 $size $more
once $out/mddt/played python -m foundation.evaluate task=metaworld task.name=[$pretraining] policy=$out/mddt episodes=${PLAYED:-10} baselines=[random,player]
# beside it, continuous actions and one token a step: 3 minutes
once $out/dt python -m foundation.pretrain method=dt data.train=$out/data/pretraining data.normalise=task data.return_scale=task steps=3000 method.net.layout=merged method.net.context=5 method.net.dropout=0 method.optimizer.lr=1e-3 method.optimizer.warmup_steps=50
once $out/dt/played python -m foundation.evaluate task=metaworld task.name=[$pretraining] policy=$out/dt episodes=${PLAYED:-10} baselines=[]

run() {  # run <name> <overrides ...>: with every seed
  local name=$1
  shift
  for seed in ${SEEDS:-0 1 2}; do
    once $out/$name/seed$seed python -m foundation.continual experiment=l2m_cw_small task.name=[$sequence] pretrained=[$retained] init=$out/mddt data.train=$out/data/tasks steps=${STEPS:-400} episodes=${PLAYED:-10} run.seed=$seed "$@" $more
  done
}
for name in ${METHODS:-l2m l2m_oracle l2m_sticky continual_full continual_last_layer continual_ewc continual_l2 continual_lora continual_ia3 continual_adapter continual_prompt continual_prefix}; do
  case $name in
    l2m_*) run $name method=l2m method.net.select=${name#l2m_} ;;
    *) run $name method=$name ;;
  esac
done
python -m foundation.report runs=[$out] out=$out/report.html title=L2M run.dir=$out/report
