# `make check` is what CI runs (.ci/run). PYTHON is any environment in which pitstop[test] is installed.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)

# The oldest versions that pyproject.toml allows: change both together.
OLDEST = torch==2.6.0 torchvision==0.21.0 accelerate==1.3.0 timm==1.0.13 safetensors==0.5.0 numpy==1.26.0 \
         pillow==10.0.0 pydantic==2.7.0 fire==0.7.0 tqdm==4.66.0 scikit-learn==1.4.0 wandb==0.31.0 \
         nvidia-ml-py==12.535.77 obstore==0.7.0

# Most tests wait for something, so several go on beside each other (BESIDE= for one after the other).
BESIDE ?= -n 2 --dist worksteal

.PHONY: setup check test storm bench format oldest

setup:  ## .venv with pitstop and the tools; a torch that is already in it stays
	python3 -m venv .venv
	.venv/bin/python -m pip install -e '.[test]'

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -q $(BESIDE)

test:
	$(PYTHON) -m pytest $(BESIDE)

storm:  ## every fault in its long form; 500 restarts (RESTARTS=100 for fewer): the same bits, nothing leaked
	PITSTOP_TEST_SWEEP=all $(PYTHON) -m pytest -q $(BESIDE) tests/faults
	$(PYTHON) tests/faults/storm.py --restarts $(or $(RESTARTS),500)

bench:  ## prints tables, asserts nothing
	@set -e; for program in benchmarks/*.py; do echo "== $$program"; $(PYTHON) "$$program"; done

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

oldest:  ## the tests with the oldest versions, in an environment of their own
	python3 -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -e '.[test]' $(OLDEST)
	.venv-oldest/bin/python -m pytest -q $(BESIDE)
