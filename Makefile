# Needs Python 3.11 or newer, make and git. The first target that runs creates .venv; afterwards nothing is installed again until
# requirements.txt changes. Another interpreter: `make demo PYTHON=/path/to/python3.12`.

VENV  := .venv
BIN   := $(VENV)/bin
# Touched last, so that an interrupted installation leaves none and the next call resumes it.
STAMP := $(VENV)/.installed

CAN_MAKE_VENV := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
CAN_INSTALL   := import sys, pip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$candidate -c '$(CAN_MAKE_VENV)' 2>/dev/null && echo $$candidate && break; done)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test chaos gpu format clean

help:  ## List the targets
	@echo "Usage: make TARGET"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST)

demo: $(STAMP)  ## Train a small model, grow it once, read what it writes: start here
	@$(BIN)/python -m app demo

test: $(STAMP)  ## Lint, check types and run all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

chaos: $(STAMP)  ## Kill, stop and resume a hundred random runs: about 20 minutes
	$(BIN)/python tests/chaos.py --runs 100 --seed 1

gpu: $(STAMP)  ## Try everything on this machine's GPUs, and leave a table in results/: ten minutes
	@$(BIN)/python -m app gpu

format: $(STAMP)  ## Format the code and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove .venv and caches (runs and data stay)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.txt
	@rm -f $@
	@$(BIN)/python -c '$(CAN_INSTALL)' 2>/dev/null || { \
		test -n "$(PYTHON)" && "$(PYTHON)" -c '$(CAN_MAKE_VENV)' 2>/dev/null || { \
			echo "Greenhouse needs Python 3.11 or newer with its venv module (Debian, Ubuntu: apt install python3-venv)." >&2; \
			echo "None found$(if $(PYTHON), as '$(PYTHON)'). Name one: make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python3.12" >&2; \
			exit 1; }; \
		"$(PYTHON)" -m venv --clear $(VENV); }
	@echo "Installing requirements.txt into $(VENV): once, a few minutes, mostly to download PyTorch ..."
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
