#!/usr/bin/env bash
# LaMo on Reacher2d: init x train x embed, with 5 to 100 episodes, over seeds; every finished line is skipped when run
# again. All of it: 25 arms x 4 sizes x 5 seeds of about a minute on one core. Fewer: EPISODES="15" SEEDS="0 1" runs/lamo.sh
# A larger trunk, for a GPU: SIZE="method.net.width=768 method.net.layers=12 method.net.heads=12 trainer=gpu".
set -euo pipefail
. "$(dirname "$0")/once.sh"
out=${OUT:-outputs/lamo}
size=${SIZE:-method.net.width=64 method.net.layers=3 method.net.heads=2}
more=${MORE:-}  # further overrides of the policies' training, e.g. steps=1000
played=${PLAYED:-50}

# data: the scripted player slowed down and disturbed, about as good as the paper's medium data (mean return about 30).
# Its actions are kept without the disturbance: with it, noise is 5/6 of the held-out loss, which then stops every arm at
# its first 100 steps, long before it can play (return 2 to 7 with 15 episodes).
states="states.scale=0.3 states.noise=0.5 states.noisy=1 states.label=clean"
once $out/collect_train   python -m foundation.collect task=reacher2d states.episodes=100 $states run.seed=1 out=$out/data/train
once $out/collect_heldout python -m foundation.collect task=reacher2d states.episodes=50 $states run.seed=2 out=$out/data/heldout

# language models that need no download: a chain with structure, its control without any, and English bytes (apt-get
# install debian-policy, or TEXT=<any folder of text>)
inits=${INIT:-random markov iid text}
text=${TEXT:-/usr/share/doc/debian-policy/policy.html/_sources}
language="method=language data.batch_size=8 steps=${LANGUAGE_STEPS:-1000} validate_every=${LANGUAGE_STEPS:-1000} $size"
once $out/markov python -m foundation.pretrain $language data=markov data.tau=0.1
once $out/iid    python -m foundation.pretrain $language data=markov data.tau=0.1 data.order=iid
if [[ " $inits " == *" text "* ]]; then
  once $out/text python -m foundation.pretrain $language data=text data.train=$text
fi

dt="method.language.train=full method.net.embed=linear method.net.head=tanh method.net.time=before method.net.activation=relu"
sweep="--multirun hydra.sweep.dir=$out/sweep"  # several runs in one process
arm() {  # arm <episodes> <name> <overrides ...>: train with every seed, then play, asked for LaMo's return
  local folder=$out/episodes$1/$2 episodes=$1 seeds= policies=
  shift 2
  for seed in ${SEEDS:-0 1 2 3 4}; do
    [ -f "$folder/seed$seed/summary.json" ] || seeds+=,$seed
    [ -f "$folder/seed$seed/played/summary.json" ] || policies+=,$folder/seed$seed
  done
  [ -z "$seeds" ] || python -m foundation.pretrain $sweep experiment=lamo_reacher2d data.train=$out/data/train data.validation=$out/data/heldout data.episodes=$episodes run.seed=${seeds#,} "run.dir=$folder/seed\${run.seed}" $size "$@" $more
  [ -z "$policies" ] || python -m foundation.evaluate $sweep task=reacher2d policy=${policies#,} "run.dir=\${policy}/played" target=76 episodes=$played baselines=[]
}
for episodes in ${EPISODES:-5 15 50 100}; do
  arm $episodes dt $dt
  for init in $inits; do
    from=$init
    [ $init = random ] || from=$out/$init
    for train in ${TRAIN:-full lora frozen}; do
      for embed in ${EMBED:-linear mlp}; do
        arm $episodes $init-$train-$embed method.language.init=$from method.language.train=$train method.net.embed=$embed
      done
    done
  done
done
once $out/baselines python -m foundation.evaluate task=reacher2d policy=player baselines=[random,noop] episodes=$played
python -m foundation.report run.dir=$out/report runs=[$out] out=$out/report.html title=LaMo
