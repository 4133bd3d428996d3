# Commands for developers; `make` alone lists them. Each makes first what it needs and lacks: the virtual
# environment .venv from the lock files, and, where root and apt-get allow, Orthanc, DCMTK and PostgreSQL.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo demo-pipeline test prove bench lint format lock licenses docs assets screenshots

BIN := .venv/bin
LOCKS := requirements-build.lock requirements-dev.lock
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header $(UPGRADE)

# Debian keeps Orthanc in /usr/sbin, which is not on everyone's path.
export PATH := $(PATH):/usr/sbin
# uv is to trust the certificate authorities that the machine trusts.
export UV_SYSTEM_CERTS := 1

help: ## list the commands
	@echo "make COMMAND; to pass arguments on: make test ARGS='-k lease'"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' Makefile | expand -t 18

demo: .venv/.ready ## deliver a CT series and its segmentation to three receivers, and watch
	@tools/system_tools.sh orthanc dcmtk
	@$(BIN)/python -m examples.demo $(ARGS)

demo-pipeline: .venv/.ready ## run the liver-tumour pipeline, deliver its results to receivers and viewer, and watch
	@tools/system_tools.sh orthanc dcmtk chromium fonts-dejavu-core
	@$(BIN)/python -m examples.demo_pipeline $(ARGS)

test: .venv/.ready ## run all tests but the long proofs, with coverage
	@tools/system_tools.sh orthanc orthanc-dicomweb dcmtk postgresql prometheus chromium fonts-dejavu-core
	$(BIN)/pytest -n 2 -m "not prove" --cov --cov-report=term --durations=10 $(ARGS)

prove: .venv/.ready ## run the long proofs
	@tools/system_tools.sh orthanc orthanc-dicomweb dcmtk postgresql chromium fonts-dejavu-core
	$(BIN)/pytest -m prove $(ARGS)

bench: .venv-bench/.ready ## measure beside peers: the queue, or WHAT=dicom, dicomweb, pipeline, render; see benchmarks/README.md
	@tools/system_tools.sh postgresql rabbitmq-server orthanc orthanc-dicomweb dcmtk
	.venv-bench/bin/python -m benchmarks.$(or $(WHAT),queue) $(ARGS)

lint: .venv/.ready ## check style, types, imports, the Dockerfile and the shell scripts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile examples/liver-tumor/Dockerfile
	$(BIN)/shellcheck .ci/run tools/*.sh

format: .venv/.ready ## mend what ruff can mend, and lay the code out
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

lock: .venv/.ready ## pin the packages that pyproject.toml asks for; UPGRADE=--upgrade takes the newest
	$(COMPILE) pyproject.toml --extra all --group dev --group examples -o requirements-dev.lock
	$(COMPILE) pyproject.toml --extra all -c requirements-dev.lock -o requirements.lock
	$(COMPILE) pyproject.toml -c requirements-dev.lock -o requirements-operator.lock
	$(COMPILE) pyproject.toml --extra all --group bench -c requirements-dev.lock -o requirements-bench.lock
	$(COMPILE) --group pyproject.toml:build -c requirements-dev.lock -o requirements-build.lock
	$(COMPILE) --group pyproject.toml:examples -c requirements-dev.lock -o requirements-examples.lock

licenses: .venv/.ready ## write LICENSE-3rdParty from what is installed
	$(BIN)/python -m tools.third_party_licenses

assets: .venv/.ready ## fetch what the console's pages load and others have made (needs npm)
	$(BIN)/python -m tools.assets

docs: .venv/.ready ## write the reference pages that say what the code says
	$(BIN)/python tools/reference.py

screenshots: .venv/.ready ## take the pictures of the console and the viewer that the documentation shows
	@tools/system_tools.sh orthanc dcmtk chromium fonts-dejavu-core
	@$(BIN)/python -m tools.screenshots --timeout 400 $(ARGS)

.venv/.ready: $(LOCKS) pyproject.toml tools/environment.sh
	@tools/environment.sh

.venv-bench/.ready: .venv/.ready requirements-bench.lock
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-bench
	$(BIN)/uv pip sync --quiet --python .venv-bench/bin/python --require-hashes requirements-bench.lock
	$(BIN)/uv pip install --quiet --python .venv-bench/bin/python --no-deps --no-build-isolation --editable .
	touch .venv-bench/.ready
