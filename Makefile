# Targets for a machine with Python 3.11, pip, make and git. `make` lists them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv-peers/.ready
DRIFT_PEERS := .venv-drift-peers/.ready
SERVE_PEERS := .venv-serve-peers/.ready
AUDITOR := .venv-audit/.ready
WORKSPACE ?= workspace
WORK ?=
PORT ?= 4200

.DEFAULT_GOAL := help
.PHONY: bucket derived docs schema help setup nightly loop incident drill serve test long databases lint audit format bench peers engines sizing calibrate clean

help: ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## Create .venv from requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
		echo "offline-dqn's lock file is for Python 3.11, and $(PYTHON) is not: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the locked packages into .venv (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

nightly: $(READY) ## Simulate logs and run three nights in ./workspace
	@$(BIN)/python -m pipelines.demo $(WORKSPACE)

serve: $(READY) ## Run nights by schedule: Prefect's server and worker on loopback, until Ctrl-C (PORT=4200)
	@exec $(BIN)/offline-dqn scheduler --workspace $(WORKSPACE) --port $(PORT)

loop: $(READY) ## Serve, learn and promote for two simulated weeks; ends with a picture (docs/loop.md)
	@$(BIN)/python -m pipelines.loop $(WORKSPACE)-loop $(ARGS)

incident: $(READY) ## Learn from a poisoned source, promote, be paged, and work through the runbooks, timed (docs/runbooks)
	@$(BIN)/python -m pipelines.incident.drill $(WORKSPACE)-incident $(ARGS)

drill: $(READY) ## Inject faults into nights of a scratch workspace and repeat them (docs/faults.md; ARGS="--rounds 4 --seed 7")
	@$(BIN)/offline-dqn drill $(ARGS)

test: $(READY) ## Run the tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

long: $(READY) ## Run the tests that take from half a minute on, which make test leaves out
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m long $(ARGS)

LAKE_TESTS = lake_bucket lake_lease batches compaction compatibility erasure retention rewriting quarantine outcome_ingest identities

bucket: $(READY) ## Run the lake's tests with every lake in a bucket, and measure it (docs/scaling.md)
	@OFFLINE_DQN_LAKES_IN_BUCKET=1 $(BIN)/python -m pytest $(LAKE_TESTS:%=tests/datasets/test_%.py) $(ARGS)
	@$(BIN)/python -m tests.benchmarks.bucket_work writers --no-lease
	@$(BIN)/python -m tests.benchmarks.bucket_work night

databases: $(READY) ## Two nights in one PostgreSQL that is taken away meanwhile (docs/databases.md)
	@$(BIN)/python -m pytest tests/pipelines/drill_databases.py $(ARGS)

lint: $(READY) ## ruff, mypy --strict, and whether the environment is the one that is locked
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m tests.lock

audit: $(AUDITOR) ## Ask for advisories on every locked package (needs the network; docs/security.md)
	@.venv-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement requirements.lock $(ARGS)

$(AUDITOR):
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	@touch $(AUDITOR)

docs: $(READY) ## Build the site of docs/ into build/site, without the network: open build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

format: $(READY) ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(READY) $(if $(filter-out updates quality estimators,$(WORK)),,$(PEERS)) $(if $(filter-out drift,$(WORK)),,$(DRIFT_PEERS)) $(if $(filter-out decision,$(WORK)),,$(SERVE_PEERS)) ## Measure speed against peers and write docs/benchmarks.json (WORK=ingest for one group)
	@$(BIN)/python -m tests.benchmarks.bench $(if $(WORK),--work $(WORK)) $(ARGS)

peers: $(PEERS) $(DRIFT_PEERS) $(SERVE_PEERS) ## Create .venv-peers, .venv-drift-peers and .venv-serve-peers, the environments of the benchmark's peers

$(PEERS): tests/benchmarks/peers-requirements.txt | $(READY)
	@$(BIN)/python -m tests.benchmarks.peers learners

$(DRIFT_PEERS): tests/benchmarks/drift-peers-requirements.txt | $(READY)
	@$(BIN)/python -m tests.benchmarks.peers drift

$(SERVE_PEERS): tests/benchmarks/serve-peers-requirements.txt | $(READY)
	@$(BIN)/python -m tests.benchmarks.peers serving

engines: $(READY) ## Run the same small night on threads, Dask and Ray, and compare every bit (minutes)
	@$(BIN)/python -m tests.pipelines.engine_nights $(ARGS)

sizing: $(READY) ## Measure what a night costs by its steps and write docs/sizing.json and docs/sizing.md (ARGS="--steps N")
	@$(BIN)/python -m tests.benchmarks.sizing $(ARGS)

calibrate: $(READY) ## Measure the gate's error rates and write docs/calibration.json
	@$(BIN)/python -m tests.benchmarks.calibrate $(ARGS)

clean: ## Remove .venv and the demo workspace
	rm -rf .venv $(WORKSPACE) $(WORKSPACE)-loop $(WORKSPACE)-incident

derived: $(READY) ## Write dashboards/, its alert rules and the table of docs/metrics.md from the definitions of the metrics
	@$(BIN)/python -m pipelines.metrics.derived

schema: $(READY) ## Write docs/evaluation.schema.json from the records behind evaluation.json
	@$(BIN)/offline-dqn report schema > docs/evaluation.schema.json
