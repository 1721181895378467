# Every target sets up what it needs: a Python of 3.11 or newer with pip is enough.
PYTHON ?= python3
BIN := .venv/bin
# 25.1 is the first that installs dependency groups; 26 is the newest that was tried.
PIP_RANGE := pip>=25.1,<27

.PHONY: help demo dtp-study evidence evidence-short multi-mnist find-digit allen-cahn toys physics test test-slow test-device test-newest lint format hooks build bench bench-device reliability soak test-versions bench-torchjd test-torchjd docs docs-site clean
help:
	@echo "make demo       two-digit demo: tables and plots in outputs/ (3 minutes on 2 cores)"
	@echo "make dtp-study  what each setting of prioritization does (some ten minutes on 2 cores)"
	@echo "make evidence   which method helps where (minutes, from runs that are kept; without them hours)"
	@echo "make evidence-short  the same in its shortest form, which says whether it runs"
	@echo "make multi-mnist, find-digit, toys, physics, allen-cahn: further examples (under 5 minutes each)"
	@echo "make test       the test suite (under 8 minutes on 2 cores)"
	@echo "make test-slow  the longer checks (half an hour on 2 cores)"
	@echo "make test-device  the numeric tests on the device that JAX finds"
	@echo "make test-newest  the test suite with the newest jax, optax and flax, whatever the ranges"
	@echo "make lint       ruff and pyright;  make format rewrites the files"
	@echo "make hooks      ruff before every commit"
	@echo "make build      source distribution and wheel in dist/, checked"
	@echo "make bench      the benchmarks, as ratios measured in one run"
	@echo "make bench-device  what matters on an accelerator, for the device that JAX finds"
	@echo "make reliability  docs/reliability.md: what was tried on every method (half an hour on 2 cores)"
	@echo "make soak       an hour of training with faults and kills, the same bits at the end"
	@echo "make test-versions  the suite with the oldest and the newest supported versions"
	@echo "make bench-torchjd  the same work by TorchJD, side by side (installs PyTorch)"
	@echo "make test-torchjd  agreement with TorchJD"
	@echo "make docs-site  the documentation as a site in outputs/site (minutes: its cells run)"
	@echo "make docs       the tables and plots that the documents show"

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("dtp_jax needs Python 3.11 or newer; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

# The pip that comes with Python 3.11 knows no dependency groups.
.venv/.pip-ready: | .venv/bin/python
	$(BIN)/python -m pip install --quiet --upgrade "$(PIP_RANGE)"
	@touch $@

# One stamp per dependency group: an install is repeated only when pyproject.toml changes.
.venv/.installed-%: pyproject.toml | .venv/.pip-ready
	$(BIN)/python -m pip install --quiet --group $* --editable ".[flax]"
	@touch $@

demo: .venv/.installed-examples
	$(BIN)/python -m examples.two_digits

dtp-study: .venv/.installed-examples
	$(BIN)/python -m benchmarks.dtp_study

# Goes on where it was; docs/evidence.md is written at the end.
evidence: .venv/.installed-evidence
	$(BIN)/python -m benchmarks.evidence --page docs/evidence.md

evidence-short: .venv/.installed-evidence
	$(BIN)/python -m benchmarks.evidence --short

multi-mnist: .venv/.installed-examples
	$(BIN)/python -m examples.multi_mnist

find-digit: .venv/.installed-examples
	$(BIN)/python -m examples.find_digit

toys: .venv/.installed-examples
	$(BIN)/python -m examples.toy_problems

physics: .venv/.installed-examples
	$(BIN)/python -m examples.physics_informed

allen-cahn: .venv/.installed-examples
	$(BIN)/python -m examples.allen_cahn

test: .venv/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: .venv/.installed-test
	# With the optimizations of the compiler that users get.
	XLA_FLAGS=--xla_force_host_platform_device_count=8 $(BIN)/python -m pytest -n 2 -m slow

# What computes something, on whatever platform JAX finds; tests that want eight devices are
# skipped where there are fewer. Several processes share the memory of one device. Where JAX
# for the device is installed in another Python: `make test-device DEVICE_PYTHON=python3`.
# If that has pytest-benchmark, it warns of several processes, and a warning is an error.
DEVICE_PYTHON ?= $(BIN)/python
DEVICE_WORKERS ?= 2
DEVICE_TESTS := tests/solvers tests/core tests/gradients tests/links tests/test_contract.py \
	tests/test_combiners_contract.py tests/test_export.py
test-device: $(if $(filter $(BIN)/python,$(DEVICE_PYTHON)),.venv/.installed-test)
	XLA_PYTHON_CLIENT_PREALLOCATE=false $(DEVICE_PYTHON) -m pytest -p no:benchmark \
		-n $(DEVICE_WORKERS) --dist loadgroup $(DEVICE_TESTS)

# Tells early what the next release of a dependency breaks. The ranges of pyproject.toml are
# left behind, so the stamps go first: the next target brings back what fits the ranges.
test-newest: .venv/.installed-test
	rm -f .venv/.installed-*
	$(BIN)/python -m pip install --quiet --upgrade jax optax flax chex orbax-checkpoint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The table and plots that README.md and docs/ show.
docs: .venv/.installed-examples
	$(BIN)/python -m examples.two_digits --out docs/two_digits
	$(BIN)/python -m benchmarks.dtp_study --out docs/dtp_study --page docs/dtp.md
	$(BIN)/python -m examples.multi_mnist --out docs/multi_mnist
	$(BIN)/python -m examples.find_digit --out docs/find_digit
	$(BIN)/python -m examples.toy_problems --out docs/toy_problems
	$(BIN)/python -m examples.physics_informed --out docs/physics_informed
	$(BIN)/python -m examples.allen_cahn --out docs/allen_cahn
	$(BIN)/python -m examples.pictures --out docs/pictures

# A warning is an error, a broken link between pages among them; every cell is run.
docs-site: .venv/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html -c docs -d outputs/site-cache . outputs/site
	@for file in index.html _static/site.css _static/sort.js; do \
		test -f outputs/site/$$file || { echo "outputs/site/$$file is missing"; exit 1; }; \
	done

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: .venv/.installed-dev
	$(BIN)/pre-commit install

# The wheel is built from the source distribution. It is then installed alone, with nothing
# but its own dependencies, where the repository is not on the path (-I).
build: .venv/.installed-build
	rm -rf dist .venv/empty
	$(BIN)/pyproject-build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m venv .venv/empty
	.venv/empty/bin/python -m pip install --quiet dist/*.whl
	.venv/empty/bin/python -I tests/wheel_alone.py
	rm -rf .venv/empty

bench: .venv/.installed-examples
	$(BIN)/python -m benchmarks.dtp_step
	$(BIN)/python -m benchmarks.gramian
	$(BIN)/python -m benchmarks.features
	$(BIN)/python -m benchmarks.solvers
	$(BIN)/python -m benchmarks.methods
	$(BIN)/python -m benchmarks.methods --widths 64 512 512 512 512 \
		--methods "grad_norm, every 10" "lr_annealing, every 10" "ntk, every 10"
	$(BIN)/python -m benchmarks.instance_wise
	$(BIN)/python -m benchmarks.seeds_and_rates

# With TorchJD beside it where that is installed. DEVICE_PYTHON is explained above.
bench-device: $(if $(filter $(BIN)/python,$(DEVICE_PYTHON)),.venv/.installed-examples)
	$(DEVICE_PYTHON) -m benchmarks.device

reliability: .venv/.installed-test
	$(BIN)/python -m benchmarks.reliability --out docs/reliability.md

soak: .venv/.installed-test
	$(BIN)/python -m benchmarks.soak --seconds 3600 --page docs/reliability.md

# In environments of their own, so that .venv stays as it is. The oldest are the lower ends
# of the ranges in pyproject.toml, and a pyparsing that does not warn of that matplotlib;
# OLDEST and NEWEST may name other interpreters.
OLDEST ?= $(PYTHON)
NEWEST ?= $(PYTHON)
test-versions:
	rm -rf .venv/versions
	$(OLDEST) -m venv .venv/versions/oldest
	.venv/versions/oldest/bin/python -m pip install --quiet "$(PIP_RANGE)"
	.venv/versions/oldest/bin/python -m pip install --quiet --group test --editable ".[flax]" \
		jax==0.10.0 optax==0.2.8 flax==0.12.7 chex==0.1.90 matplotlib==3.9.0 \
		scikit-learn==1.5.0 scipy==1.14.0 orbax-checkpoint==0.11.20 tqdm==4.66.0 \
		hypothesis==6.100.0 pytest==8.0.0 pytest-xdist==3.6.1 pyparsing==3.1.4
	.venv/versions/oldest/bin/python -m pytest -n 2 --dist loadfile
	$(NEWEST) -m venv .venv/versions/newest
	.venv/versions/newest/bin/python -m pip install --quiet "$(PIP_RANGE)"
	.venv/versions/newest/bin/python -m pip install --quiet --group test --editable ".[flax]"
	.venv/versions/newest/bin/python -m pytest -n 2 --dist loadfile

bench-torchjd: .venv/.installed-torchjd
	$(BIN)/python -m benchmarks.torchjd

test-torchjd: .venv/.installed-torchjd
	$(BIN)/python -m pytest -n 0 tests/test_torchjd.py tests/test_conflictfree.py

clean:
	rm -rf .venv outputs dist
