# A newcomer types `make demo` and `make test`; both create the environment first.
PYTHON ?= python3
VENV   ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin

.PHONY: help install demo test test-slurm slow lint clean
help:
	@echo "make demo         the whole path on a real game: video -> labels -> policy -> RL, with a report"
	@echo "make test         lint and the fast tests"
	@echo "make test-slurm   those that start a Slurm of their own; needs root and apt-get install slurm-wlm munge"
	@echo "make slow         the tests marked slow"
	@echo "make install | lint | clean"

install: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	PATH="$(abspath $(BIN)):$$PATH" bash runs/demo.sh

test: install lint  # a process per core, up to 4; a file's tests stay in one
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slurm: install
	$(BIN)/python -m pytest tests/slurm -v -m "not gpu"

slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .

clean:
	rm -rf outputs .pytest_cache .ruff_cache .hypothesis
