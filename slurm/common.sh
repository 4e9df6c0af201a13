# Sourced by the scripts beside it; jobs run in the folder they were submitted from: the repository.

if [ -z "${SLURM_JOB_ID:-}" ]; then
  if command -v sbatch >/dev/null; then
    echo "This is a batch script; submit it: sbatch $0 $*" >&2
  else
    echo "sbatch is not on this machine. Submit from a login node of the cluster, or run here without Slurm:" >&2
    echo "  $without_slurm $*" >&2
  fi
  exit 2
fi

[ -f .venv/bin/activate ] && source .venv/bin/activate
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # since Slurm 22.05 srun no longer takes it from the job

# The same for a job and its requeued continuation, another for another job.
job=$SLURM_JOB_NAME-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}

# override NAME ARGUMENTS...: the value of the last NAME=value among the arguments, or nothing
override() {
  local name=$1 argument value=
  shift
  for argument; do
    if [[ $argument == "$name="* ]]; then value=${argument#*=}; fi
  done
  printf %s "$value"
}

# train PYTHON_ARGUMENTS...: one process per task. The signals that ask to stop are held back in it and in all its
# children from the first moment (a mask survives exec); it reads them between two steps, see foundation/preemption.py.
train() {
  trap : TERM  # the shell waits for its tasks when the job is asked to end
  srun --kill-on-bad-exit=1 python -c '
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
os.execvp("python", ["python", *sys.argv[1:]])' "$@"
}
