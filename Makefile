# make bench    set up, train the default grid, write the report
# make test     set up with the developers' tools, run every test
# make check    lint, types, security
# make floors   the lowest versions that pyproject.toml allows, installed into .floors, and a part of the tests with them
# make audit    known weaknesses of the packages that are installed; needs the network
# make faults   faults at operations on files, hostile folders, and some at random: 40 minutes of a core
#               PARTS="merge hostile" chooses, MINUTES=5 is of each part, ALL=1 has every kind at every operation: hours
# make gpu      what only a GPU can show, in nine minutes at most; IMAGES=cifar100.npz also trains on real images
# make gpu-data pack the images of an .npz file so that they travel in two halves

PYTHON ?= python3
VENV ?= .venv
GRID ?= quick
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet -c constraints.txt
PYTEST ?=

.PHONY: bench test check floors audit faults format readme gpu gpu-data
bench: $(VENV)/.installed
	$(BIN)/python run_bench.py run $(GRID)

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/bandit -q -c pyproject.toml -r bench methods reports run_bench.py

audit: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip_audit --skip-editable

faults: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/fault_figures.py $(if $(PARTS),--parts $(PARTS)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ALL),--all)

gpu: $(VENV)/.installed-dev
	$(BIN)/python tests/gpu_driver.py --out gpu_out $(if $(IMAGES),--images $(IMAGES))

gpu-data: $(VENV)/.installed-dev
	$(BIN)/python tests/gpu_data.py pack $(IMAGES) gpu_data

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

readme: $(VENV)/.installed-dev  # writes the tables of our pages from cards and records
	$(BIN)/python -m reports.readme

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing what constraints.txt pins into $(VENV); some gigabytes where torch comes with CUDA"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[dev,timm,huggingface,tensorboard,gradcam,completion]'
	@touch $@

# With Python 3.11, the lowest that pyproject.toml allows: former versions of packages have no wheels for a newer one
FLOORS := .floors
FLOOR_EXTRAS := timm,tensorboard,gradcam,completion
TESTED := gate upkeep cell grid recipes models step run image_files users_data status stats frame tables reports figures texts

floors:
	$(PYTHON) -m venv $(FLOORS)
	$(PYTHON) .ci/floors.py > $(FLOORS)/constraints.txt
	$(FLOORS)/bin/python -m pip install --quiet -c $(FLOORS)/constraints.txt -e '.[$(FLOOR_EXTRAS)]' pytest hypothesis pytest-xdist
	OMP_NUM_THREADS=1 $(FLOORS)/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(TESTED:%=tests/test_%.py) $(PYTEST)
