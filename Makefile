# Every target does all its own set-up: a virtual environment in .venv, the pinned packages, the weights.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN)

.PHONY: demo demo-deployment test test-faults bench lint typecheck weights clean help

help:
	@echo "make demo       set up, then plan, train, predict and evaluate on a made-up cohort with real weights"
	@echo "make demo-deployment  set up, then a server and three hospitals as processes on this machine; one is killed and comes back"
	@echo "make test       set up, then lint, type check and all tests"
	@echo "make test-faults  set up, then kill the processes of a real federation on this machine and see it go on"
	@echo "make bench      set up, then measure what is compared with reference programs; keep the machine idle meanwhile"
	@echo "make weights    set up, then put LiteMedSAM's weights into the cache"
	@echo "make clean      remove .venv and everything that was built"

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(STAMP)

weights: $(STAMP)
	$(BIN)/fedsam_download_weights lite_medsam

demo: weights
	$(BIN)/fedsam_demo

demo-deployment: weights
	$(BIN)/fedsam_demo_deployment --overwrite

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# plans/ and entrypoints/ are mapped into the package's name; the checker sees them there through links
typecheck: $(STAMP)
	rm -rf build/typecheck && mkdir -p build/typecheck/fedsam_pipeline
	ln -s $(CURDIR)/fedsam_pipeline/* $(CURDIR)/plans $(CURDIR)/entrypoints build/typecheck/fedsam_pipeline/
	ln -s $(CURDIR)/tests $(CURDIR)/benchmarks build/typecheck/
	cd build/typecheck && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p fedsam_pipeline -p tests -p benchmarks

# Two processes, each with whole files: what a file sets up is set up once. make test TEST_WORKERS=0 runs all in one process.
TEST_WORKERS ?= 2

test: lint typecheck weights
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

test-faults: $(STAMP)
	$(BIN)/python -m pytest -m faults

# Those that need no data from elsewhere; make bench BENCHES=resampling measures one.
BENCHES ?= codec encryption surface_metrics resampling encoders training_step step_profile inference predict_profile federation

bench: weights
	@failed=; for name in $(BENCHES); do \
	  echo "== python -m benchmarks.$$name"; $(BIN)/python -W ignore -m benchmarks.$$name || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
