# Each target sets up what it needs in .venv and skips what is already there.
#   PYTHON=python3.12   which Python makes .venv         FASTNETS_BUILD=none   no compiled kernels (README.md)
#   TORCH=2.12.0        another torch than the pinned    ARGS="-k conv2d"      more arguments for pytest
#   WORKERS=4           processes that run tests

PYTHON ?= python3
PINNED := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH ?= $(PINNED)
VENV := .venv
# One stamp for the torch in .venv, one for each extra of pyproject.toml, one for the compiled kernels.
HAS_TORCH := $(VENV)/has-torch-$(TORCH)
BUILT := $(VENV)/built-$(or $(FASTNETS_BUILD),auto)$(FORCE_CUDA)
WORKERS ?= 2
# Threads that wait in one process must not keep those of another from the cores.
PYTEST := OMP_WAIT_POLICY=passive python -m pytest -rs -n $(WORKERS) --dist worksteal
CXX_FILES = $$(find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-networks lint format bench gpu gpu-resources sanitize wheel clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 15

demo: $(VENV)/has-demo $(BUILT) ## Classify three photographs with EfficientNet-Lite0, beside PyTorch
	@mkdir -p build
	@python -m fastnets classify --compare --save build/demo.png $$(python -c 'import pathlib, skimage; \
		print(*(pathlib.Path(skimage.__file__).parent / "data" / f for f in ("chelsea.png", "coffee.png", "rocket.jpg")))')
	@echo "Contact sheet: build/demo.png"
	@grep 'CPU kernels' $(BUILT)

test: $(VENV)/has-test $(BUILT) ## Run every test: all, per instruction set, Triton interpreted, examples, benchmarks
	$(PYTEST) $(ARGS)
	FASTNETS_CPU_CAPABILITY=default $(PYTEST) -k 'cpu or threads or geometry' tests/ops $(ARGS)
	@grep -qw avx2 /proc/cpuinfo || echo "skipped: tests/ops on AVX2, which this processor lacks"
	! grep -qw avx2 /proc/cpuinfo || FASTNETS_CPU_CAPABILITY=avx2 \
		$(PYTEST) -k 'cpu or threads or geometry' tests/ops $(ARGS)
	TRITON_INTERPRET=1 $(PYTEST) -k triton tests/ops $(ARGS)
	$(PYTEST) --doctest-modules fastnets $(ARGS)
	python -m pytest -rs benchmarks --quick $(ARGS)
	@grep 'CPU kernels' $(BUILT)

test-networks: $(VENV)/has-test $(BUILT) ## Run every test of the networks, each of which is compiled and exported too
	FASTNETS_TRACE=all $(PYTEST) tests/models $(ARGS)

lint: $(VENV)/has-test $(VENV)/has-lint ## Check style and types
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/has-lint ## Rewrite the sources in the house's style
	ruff check --fix .
	ruff format .
	clang-format -i $(CXX_FILES)

bench: $(VENV)/has-bench $(BUILT) ## Time everything against its peers; the page is build/bench.html
	@mkdir -p build
	python -m pytest benchmarks --benchmark-json=build/bench.json $(ARGS)
	python -m fastnets bench report build/bench.json -o build/bench.html

gpu: ## Try the GPU kernels on this machine's GPU and write the ledger; PART=1/3 a third of them; PYTHON: one whose torch sees the GPU
	@$(PYTHON) -m benchmarks.gpu $(PART)

gpu-resources: $(VENV)/has-test ## Record the registers, shared memory and spills of GPU kernels as compiled here
	FASTNETS_RECORD=1 python -m pytest -rs tests/ops/test_compile_*.py tests/cuda/test_cuda_compile.py $(ARGS)

# A package of its own in build/sanitize: the kernels in .venv stay as they are.
sanitize: $(VENV)/has-test ## Run the tests of the ops on CPU kernels that check addresses and undefined behaviour
	CXXFLAGS="-O1 -fsanitize=address,undefined -fno-sanitize-recover=all" LDFLAGS="-fsanitize=address,undefined" \
		FORCE_CUDA= FASTNETS_BUILD=cpu python setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
		PYTHONPATH=build/sanitize/lib pytest -o 'pythonpath=build/sanitize/lib tests/cuda tests/ops' -s -rs -k 'cpu or threads or geometry' tests/ops $(ARGS)

wheel: $(HAS_TORCH) ## Write the source archive, and a wheel made from it, to dist/
	rm -rf dist
	python setup.py -q sdist
	python -m pip wheel -q --no-deps --no-build-isolation -w dist dist/*.tar.gz

clean: ## Remove everything that was built, and .venv
	rm -rf $(VENV) build dist *.egg-info fastnets/*.so

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "fastnets needs Python 3.10 or later; say which: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "$(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

# Another torch than the pinned one wants its own triton and torchvision.
$(HAS_TORCH): constraints.txt | $(VENV)/bin/python
	@rm -f $(VENV)/has-* $(VENV)/built-*
	@sed $(if $(filter-out $(PINNED),$(TORCH)),-e '/^triton==/d' -e '/^torchvision==/d') -e 's/^torch==.*/torch==$(TORCH)/' constraints.txt \
		> $(VENV)/constraints.txt
	python -m pip install -q -c $(VENV)/constraints.txt torch==$(TORCH) setuptools ninja
	@touch $@

$(VENV)/has-%: pyproject.toml $(HAS_TORCH)
	FORCE_CUDA= FASTNETS_BUILD=none python -m pip install -q -c $(VENV)/constraints.txt --no-build-isolation -e '.[$*]'
	@touch $@

$(BUILT): setup.py $(HAS_TORCH) $(shell find csrc -type f)
	@echo "Compiling the kernels; the log is $(VENV)/build.log"
	@rm -f $(VENV)/built-* fastnets/*.so
	@python setup.py build_ext --inplace > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@grep 'fastnets build' $(VENV)/build.log | tee $@
