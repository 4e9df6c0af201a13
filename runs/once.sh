# Sourced by the scripts beside it.

once() {  # once <run.dir> <command ...>: unless that run has its summary
  local folder=$1
  shift
  [ -f "$folder/summary.json" ] || "$@" run.dir="$folder"
}
