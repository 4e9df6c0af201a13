#!/usr/bin/env bash
# HILP on the medium point maze over seeds: told goals, plans and rewards, beside goal-conditioned IQL and imitation, and
# IQL of each reward; every finished line is skipped when run again. Each seed is played on episodes of its own.
#   hilp       as in experiment=hilp_point_maze      stitch   the same on data whose episodes are 4 cells long
#   two_stage  skills on a finished phi; twice the steps, each of about half the work      cosine   the rate falls to 0
#   sweep      which of tau and learning rate it is that helps, at a third of the steps
#   iql, goal_bc    told goals, with the same data, width, batch and steps
#   rl         from reward prompts on: the skill searched by RL, PPO over skills, over actions, with shaped rewards
#   rewards    one policy told every reward, IQL trained on each      centred    a policy of centred features told them
# Minutes on one core a seed: 12, 12, 12, 12, 10, 6, 3, 11, 50, 8. Fewer: ARMS="hilp iql" SEEDS=0 STEPS=3000 runs/hilp.sh
# Also: OUT, MORE, EPISODES, PLAYED, REWARDS, RL_REWARD, RL_FRAMES (of PPO), LATENT_FRAMES, as below
set -euo pipefail
. "$(dirname "$0")/once.sh"
out=${OUT:-outputs/hilp_point_maze}
steps=${STEPS:-9000}
more=${MORE:-}  # further overrides of every training, e.g. trainer=gpu
episodes=${EPISODES:-400}  # of 1000 steps
played=${PLAYED:-100}  # episodes; OGBench plays 250
rewards=${REWARDS:-south_west south_east north_west north_east middle opposite_corners border diagonal north eastward}
small="data.validation=0.02 data.batch_size=256 method.net.width=128 method.optimizer.lr=1e-3 validate_every=1000"
arms="hilp stitch two_stage cosine sweep iql goal_bc rl rewards centred"
for arm in ${ARMS:=$arms}; do
  [[ " $arms " = *" $arm "* ]] || { echo "ARMS=$arm: expected some of $arms" >&2; exit 1; }
done

told="prompt=reward exemplars=$out/data/navigate"

collect="python -m foundation.collect task=point_maze"
once $out/collect_navigate $collect states.behaviour=navigate states.episodes=$episodes out=$out/data/navigate
once $out/collect_stitch   $collect states.behaviour=stitch states.episodes=$((5 * episodes)) out=$out/data/stitch

hilp() {  # hilp <name> <seed> <overrides ...>
  local folder=$out/$1/seed$2 seed=$2
  shift 2
  once $folder python -m foundation.pretrain experiment=hilp_point_maze data.train=$out/data/navigate run.seed=$seed steps=$steps "$@" $more
}
other() {  # other <method> <name> <seed> <overrides ...>
  local method=$1 folder=$out/$2/seed$3 seed=$3
  shift 3
  once $folder python -m foundation.pretrain method=$method data.train=$out/data/navigate run.seed=$seed steps=$steps $small "$@" $more
}
play() {  # play <name> <seed> <how> <overrides ...>
  local folder=$out/$1/seed$2 seed=$2 how=$3
  shift 3
  once $folder/$how python -m foundation.evaluate task=point_maze policy=$folder task.evaluation.seed=$seed environments=50 episodes=$played baselines=[] "$@"
}
goals() {  # goals <name> <seed>: OGBench's five pairs, and any two cells: five nearly fixed starts say little
  play $1 $2 goal
  play $1 $2 goal_anywhere task.env.goals=random task.evaluation.tasks=1
}
plans() {  # plans <name> <seed> <data>: actions drawn instead of the likeliest get out of corners
  play $1 $2 plan prompt=plan exemplars=$out/data/$3
  play $1 $2 plan_drawn prompt=plan exemplars=$out/data/$3 greedy=false
  play $1 $2 plan_anywhere prompt=plan exemplars=$out/data/$3 task.env.goals=random task.evaluation.tasks=1
}
paid() {  # paid <name> <seed> <how> <reward> <overrides ...>
  local name=$1 seed=$2 how=$3 reward=$4
  shift 4
  play $name $seed $how task.env.reward=$reward task.evaluation.tasks=1 "$@"
}
tuned() {  # tuned <name> <seed> <overrides ...>: RL for one reward, scored before and after on the same episodes
  local folder=$out/$1/seed$2 seed=$2
  shift 2
  once $folder python -m foundation.finetune task=point_maze task.env.reward=${RL_REWARD:-north_east} task.evaluation.tasks=1 task.evaluation.seed=$((100 + seed)) episodes=$played evaluate_every=0 run.seed=$seed "$@" $more
}

for seed in ${SEEDS:-0 1 2}; do
  for arm in $ARMS; do
    case $arm in
      hilp)
        hilp hilp $seed
        goals hilp $seed
        plans hilp $seed navigate
        ;;
      stitch)
        hilp stitch $seed data.train=$out/data/stitch
        goals stitch $seed
        plans stitch $seed stitch
        ;;
      two_stage)
        hilp two_stage $seed method.schedule=two_stage steps=$((2 * steps))
        goals two_stage $seed
        plans two_stage $seed navigate
        ;;
      cosine)
        hilp cosine $seed method.optimizer.schedule=cosine
        goals cosine $seed
        plans cosine $seed navigate
        ;;
      sweep)
        for tau in 0.005 0.03; do
          for lr in 3e-4 1e-3; do
            hilp sweep/tau$tau-lr$lr $seed method.tau=$tau method.optimizer.lr=$lr steps=$((steps / 3))
            play sweep/tau$tau-lr$lr $seed goal
          done
        done
        ;;
      iql)
        other iql iql $seed method.tau=0.03
        goals iql $seed
        ;;
      goal_bc)
        other goal_bc goal_bc $seed
        goals goal_bc $seed
        ;;
      rl)
        hilp hilp $seed
        skills=$out/hilp/seed$seed
        ppo="algo=ppo frames=${RL_FRAMES:-100000} data.condition=none"
        tuned latent_told $seed algo=latent frames=${LATENT_FRAMES:-190000} init=$skills algo.prompt=reward data.train=$out/data/navigate
        tuned latent $seed algo=latent frames=${LATENT_FRAMES:-190000} init=$skills
        tuned ppo_skills $seed $ppo skills.init=$skills
        tuned ppo $seed $ppo
        tuned ppo_shaped $seed $ppo shaping.init=$skills algo.agent.advantage_scale=rollout
        ;;
      rewards)
        hilp hilp $seed
        for reward in $rewards; do
          paid hilp $seed $reward $reward $told
          other iql iql_$reward $seed method.tau=0.03 data.reward=$reward
          paid iql_$reward $seed played $reward
        done
        ;;
      centred)
        hilp centred $seed method.net.features=centred
        for reward in $rewards; do
          paid centred $seed $reward $reward $told
          paid centred $seed $reward-no_ridge $reward $told ridge=0  # as in the paper
        done
        ;;
    esac
  done
done
once $out/baselines/goals python -m foundation.evaluate task=point_maze policy=player baselines=[random] environments=50 episodes=$played
for reward in $rewards; do
  player=player
  [ $reward != eastward ] || player=noop  # no place pays it
  once $out/baselines/$reward python -m foundation.evaluate task=point_maze task.env.reward=$reward task.evaluation.tasks=1 policy=$player baselines=[random] environments=50 episodes=$played
done
python -m foundation.report run.dir=$out/report runs=[$out] out=$out/report.html "title=Skills of a point maze"
