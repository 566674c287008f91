# Everything runs from a bare Python 3.11: `.venv` is made on first use, with uv inside it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.synced
PARALLEL ?= auto
# Behind a proxy with a certificate authority of its own, uv must trust what the system trusts.
UV_OPTIONS ?= $(if $(wildcard /etc/ssl/certs/ca-certificates.crt),--system-certs)

.DEFAULT_GOAL := help
.PHONY: help demo vm-demo serve test lint format bench fuzz nightly clean

help: ## list what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make needs Python 3.11 or later; name one with PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --locked --quiet $(UV_OPTIONS)
	touch $@

demo: $(STAMP) ## a server, a simulated chip, a guest that gets its keys, and attacks that are refused
	$(BIN)/kms demo

vm-demo: $(STAMP) ## a whole machine in QEMU, no KVM: it proves itself and opens its disk; takes root, a Debian and minutes
	$(BIN)/python -m vm

serve: $(STAMP) ## run the server with the settings of the environment and kms.toml
	$(BIN)/kms serve

test: $(STAMP) ## all tests but the nightly ones; what needs a Vault or SoftHSM that is not there is listed as skipped
	$(BIN)/pytest -n $(PARALLEL) --dist loadfile -m "not nightly"

lint: $(STAMP) ## ruff, mypy strict, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## measure: ours beside sev-snp-measure and the bare primitives, in one run
	$(BIN)/python -m bench

fuzz: $(STAMP) ## 100,000 mutations each of valid firmware, certificate tables and certificates
	$(BIN)/python -m tests.fuzz.firmware --cases 100000
	$(BIN)/python -m tests.fuzz.certificate_tables --cases 100000
	$(BIN)/python -m tests.fuzz.certificates --cases 100000

nightly: $(STAMP) ## the exhaustive tests
	$(BIN)/pytest -n $(PARALLEL) --dist loadfile -m nightly

clean: ## remove what make made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
