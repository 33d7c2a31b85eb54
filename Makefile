# `make demo` makes a first GLB, `make test` checks everything; both set up .venv by themselves.
#
# Variables:
#   PYTHON       the Python (3.11 or newer) to make .venv with
#   PROMPT       what `make demo` makes
#   CONSTRAINTS  file of pinned versions; empty to let pip choose, e.g. another torch
#   PIP_ARGS     further arguments of `pip install`

PYTHON ?= python3
PROMPT ?= a green table
CONSTRAINTS ?= constraints.txt
PIP_ARGS ?=

BIN := .venv/bin
PIP_INSTALL = $(BIN)/pip install --disable-pip-version-check $(if $(strip $(CONSTRAINTS)),-c $(CONSTRAINTS)) $(PIP_ARGS)

.DEFAULT_GOAL := help
.PHONY: help install demo ui gallery bench test soak lint clean distclean
.DELETE_ON_ERROR:

help:
	@echo "make demo [PROMPT=\"...\"]   a first object: sets up .venv, writes a GLB under runs/"
	@echo "make ui                    the app in a browser, at http://127.0.0.1:7860"
	@echo "make gallery               the ten prompts of assets/prompts, one sheet of results in runs/gallery"
	@echo "make bench                 the kernels' times here, next to plain torch; runs/bench.json"
	@echo "make install               .venv with everything for development"
	@echo "make test                  formatting, imports, types and tests"
	@echo "make soak                  the long tests of reliability: kills, hundreds of jobs, many clients; about an hour"
	@echo "make lint                  the same without the tests"
	@echo "make clean                 remove builds and caches; distclean: .venv too; runs/ always stays"
	@echo "Variables: PYTHON, CONSTRAINTS (empty to choose versions yourself), PIP_ARGS"

# The environment: a stamp file each for the runtime and for development ------------------------------------------------

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; \`$(PYTHON)\` is missing or older. Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { \
		echo "No environment could be made; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

# Where there is a C++ compiler, kernels that do not build are an error; where there is none, plain torch runs. --------

COMPILER := $(firstword $(foreach name,$(CXX) c++ g++ clang++,$(shell command -v $(name) 2>/dev/null)))
KERNELS := $(wildcard cuda_ext/CMakeLists.txt cuda_ext/csrc/cpu/* cuda_ext/csrc/include/*)
INSTALL_EDITABLE = $(if $(COMPILER),DREAMKILN_REQUIRE_NATIVE=1) $(PIP_INSTALL) -e
WARN_SLOW = @$(if $(COMPILER),:,echo "No C++ compiler was found: the kernels run in plain torch, many times slower. \
	Install g++ or clang, then: make clean install" >&2)

.venv/runtime.stamp: pyproject.toml $(CONSTRAINTS) $(KERNELS) | $(BIN)/pip
	$(INSTALL_EDITABLE) .
	$(WARN_SLOW)
	@touch $@

.venv/dev.stamp: pyproject.toml $(CONSTRAINTS) $(KERNELS) | $(BIN)/pip
	$(INSTALL_EDITABLE) '.[dev]'
	$(WARN_SLOW)
	@touch .venv/runtime.stamp $@

install: .venv/dev.stamp

# A prompt is data. make must not expand it and the shell must not read it, so it travels in the environment. make
# would also export PROMPT itself, expanded, because it came from the command line; hence unexport. ---------------------

unexport PROMPT
demo: export DREAMKILN_PROMPT := $(value PROMPT)
demo: .venv/runtime.stamp
	@$(BIN)/studio generate "$$DREAMKILN_PROMPT"

ui: .venv/runtime.stamp
	$(BIN)/studio ui

# The fixed list of prompts, one after the other, and a sheet of what came out; about ten minutes on two cores.
gallery: .venv/runtime.stamp
	$(BIN)/python -m studio.gallery draft

# Times of the kernels; fails where one is not faster than plain torch by its gate. About five minutes on two cores.
bench: .venv/runtime.stamp
	@mkdir -p runs
	$(BIN)/studio bench --json runs/bench.json

# Checks ---------------------------------------------------------------------------------------------------------------

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

# Two at a time, a thread each, file by file: many tests wait, for a browser or for a process to start. Threads that wait
# do not spin: on a busy machine the tests would take ten times as long.
test: lint
	OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

soak: .venv/dev.stamp
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m soak --timeout 3600 -s

clean:
	rm -rf build dist .venv/*.stamp .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find studio representations guidance cuda_ext tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv
