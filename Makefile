# `make demo` and `make test` do all their set-up themselves: a virtual environment, the locked packages, hemlearn.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-from-lock

.DEFAULT_GOAL := help
.PHONY: help install demo test check quick golden attack privacy crashes launchers lint types docs pictures unit study wheel release-check notebooks lock bench bench-autotimm clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: $(STAMP) ## create .venv with the locked packages and hemlearn

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: install ## train on the synthetic set, test, show the table
	$(BIN)/hemlearn train name=demo

test: install ## everything CI runs
	$(MAKE) --jobs=2 lint types docs
	$(MAKE) unit

check: lint types quick ## before a commit: lint, types and the quick tests

lint: install ## ruff, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: install ## mypy, strict: the package, the experiments and the scripts of docs
	$(BIN)/mypy
	$(BIN)/mypy experiments docs

docs: install ## the documentation site into .out/site, without a network; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pictures: install ## the pictures of README and the site, from synthetic data (a quarter of an hour; needs Chromium)
	$(BIN)/python -m docs.pictures

QUICK = tests/test_architecture.py tests/test_config.py tests/test_plugins.py tests/transforms \
    tests/evaluation/test_predictions.py tests/evaluation/test_thresholds.py tests/evaluation/test_statistics.py

quick: install ## the tests that take seconds: rooms, configuration, plug-ins, transforms, closed-form statistics
	$(BIN)/pytest -n auto --dist loadfile -q $(QUICK)

golden: install ## tiny runs of everything, kept in .out/golden: compare with `python tests/golden.py compare OLD NEW`
	$(BIN)/python tests/golden.py make .out/golden

attack: install ## hostile and untidy input through the command line: a table of right, clear error, fault (15 minutes)
	$(BIN)/python -m tests.attack

crashes: install ## commands that are killed 50 times each, ended by signals, on full disks: equal files (an hour)
	$(BIN)/python -m tests.crash
	$(BIN)/python -m tests.crash --signal TERM --tries 25
	$(BIN)/python -m tests.crash --signal INT --tries 25
	$(BIN)/python -m tests.crash.places

privacy: install ## marked names, paths and passwords through every command: which file tells them (3 minutes)
	$(BIN)/python experiments/privacy/privacy.py

launchers: install ## two processes of each launcher against one: equal metrics
	$(BIN)/python -m tests.attack.launchers

unit: install ## pytest
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder  # the attack, one long test, comes first

STUDIES = $(sort $(basename $(notdir $(wildcard conf/experiment/*.yaml))))
REFERENCE = $(or $(wildcard experiments/$(NAME)/reference.yaml),$(if $(filter hemlearn_ct,$(NAME)),experiments/altuve2022/reference.yaml))

study: install ## a study and its comparison: make study NAME=desai2017 [ROOT=DIR] [ARGS="backbone=efficientnet_lite0"]
	@test "$(words $(NAME)) $(filter $(NAME),$(STUDIES))" = "1 $(NAME)" || \
	    { echo "NAME=$(NAME): give one of $(STUDIES)" >&2; exit 2; }
	@test "$(origin ROOT)" = undefined -o -n "$(ROOT)" || \
	    { echo "ROOT is empty: give the folder of the data, or leave ROOT out for the synthetic set" >&2; exit 2; }
	@test -z "$(filter name=%,$(ARGS))" || { echo "ARGS: $(filter name=%,$(ARGS)): the runs go to runs/$(NAME)" >&2; exit 2; }
	@$(BIN)/hemlearn train -m experiment=$(NAME) $(if $(ROOT),"data.root=$(ROOT)") $(ARGS); status=$$?; \
	if [ $$status -gt 1 ] || [ ! -d runs/$(NAME) ]; then exit $$status; fi; \
	$(BIN)/hemlearn compare runs/$(NAME) $(if $(REFERENCE),reference=$(REFERENCE)) \
	    $(if $(filter demyanchuk2019 hemlearn_mri hemlearn_mri_fluid,$(NAME)),level=patient) || exit $$?; \
	if [ $$status -ne 0 ]; then echo "some runs failed, see above: the comparison is of the others" >&2; fi; exit $$status

wheel: install ## build dist/*.whl
	$(BIN)/uv build --wheel --quiet --python $(BIN)/python --out-dir dist

notebooks: install ## run the notebooks as they are and store their outputs: [NAME=01_quick_start]
	$(BIN)/python -m tests.notebooks $(NAME)

release-check: install ## wheel and sdist in empty environments, README renders, commands work there
	$(BIN)/python -m tests.release .out/release

lock: install ## pin every package anew in requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	    --no-emit-index-url --no-header --no-annotate --quiet --upgrade --output-file requirements.lock

bench: install ## the page of benchmarks (16 minutes); make bench PARTS="fit sweep"
	$(BIN)/python experiments/benchmarks/bench.py $(PARTS)

bench-autotimm: install ## the whole job beside AutoTimm, installed into .out/autotimm: [ROOT=HEAD_CT] [ARGS="--folds 5"]
	$(BIN)/python experiments/benchmarks/autotimm_speed.py --venv .out/autotimm $(if $(ROOT),--root "$(ROOT)") $(ARGS)

clean: ## remove what make built
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
