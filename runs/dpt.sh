#!/usr/bin/env bash
# DPT over seeds: bandits (with noise and rewards it never saw), linear bandits, Dark Room, Dark Room with permuted actions;
# every finished line is skipped when run again. Each seed is scored on tasks of its own, and the report has one curve
# for all. Minutes on one core: 35 (a third of them to play), 7, 13 and 13 a seed. Fewer: WORLDS=bandit SEEDS=0 runs/dpt.sh
set -euo pipefail
. "$(dirname "$0")/once.sh"
out=${OUT:-outputs/dpt_worlds}
more=${MORE:-}  # further overrides of every training, e.g. trainer=gpu

train() {  # train <name> <seed> <experiment> <overrides ...>
  local folder=$out/$1/seed$2 seed=$2 experiment=$3
  shift 3
  once $folder python -m foundation.pretrain experiment=$experiment run.seed=$seed "$@" $more
}
play() {  # play <policy's name> <seed> <protocol's name> <overrides ...>
  local folder=$out/$1/seed$2 seed=$2 name=$3
  shift 3
  once $folder/$name python -m foundation.evaluate policy=$folder task.protocol.seed=$seed "$@"
}
for seed in ${SEEDS:-0 1 2 3 4}; do
  for world in ${WORLDS:-bandit linear_bandit dark_room permuted}; do
    case $world in
      bandit)
        train bandit $seed dpt_bandit
        play bandit $seed played task=bandit
        for noise in 0.1 0.5; do  # trained with 0.3
          play bandit $seed noise$noise task=bandit task.env.world.noise=$noise task.protocol.tasks=1000
        done
        play bandit $seed rewards task=bernoulli_bandit task.protocol.tasks=1000  # 0 or 1, as no noise of training
        ;;
      linear_bandit)
        train linear_bandit $seed dpt_linear_bandit
        play linear_bandit $seed played task=linear_bandit
        ;;
      dark_room)
        train dark_room $seed dpt_dark_room
        play dark_room $seed played task=dark_room
        ;;
      permuted)
        train permuted $seed dpt_dark_room data.world.permuted=true
        play permuted $seed played task=dark_room task.env.world.permuted=true
        ;;
      *)
        echo "WORLDS=$world: expected some of bandit linear_bandit dark_room permuted" >&2
        exit 1
        ;;
    esac
  done
done
python -m foundation.report run.dir=$out/report runs=[$out] out=$out/report.html "title=Learning in context"
