# make demo trains a network on handwritten digits, make test runs the tests. Both first set up .venv, which needs
# Python 3.10 or newer, make and a C++ compiler. The first make may choose: PYTHON=python3.12 another Python,
# TORCH=torch==2.11.0 another PyTorch than requirements.txt names, CXX=clang++ another compiler.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test test-time emulate sanitize bench docs lint format kernels predictions arm64 nvcc wheel sdist extras checksums clean

demo: $(VENV)/installed
	$(PY) -m drsn_ops train

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder

# the same, timed; CONTRIBUTING.md says how long it took
test-time: $(VENV)/installed
	$(PY) -m tools.test_time

bench: $(VENV)/installed
	$(PY) -m benchmarks --record
	$(PY) -m benchmarks tax --record
	$(PY) -m benchmarks host --record
	$(PY) -m benchmarks digits --record
	$(PY) -m benchmarks recordings --record
	$(PY) -m benchmarks report

# the site, in build/site; a warning, and with it a link that leads nowhere, is an error
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lint: $(VENV)/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo --no-cache
	$(PY) tools/imports.py --check
	find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(VENV)/bin/clang-format --dry-run -Werror

format: $(VENV)/installed
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(PY) tools/imports.py
	find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(VENV)/bin/clang-format -i

# the CUDA kernels, compiled as C++, in the tests made for them: with each product and sum rounded, then with both rounded
# once and with the ways of large tensors; no GPU and no nvcc is needed
emulate: $(VENV)/installed
	$(MAKE) -C tests/emulator -j2
	$(MAKE) -C tests/emulator -j2 OUT=$(CURDIR)/build/emulator/contracted CONTRACT=fast SMALL_DEVICE=1
	for folder in emulator emulator/contracted; do \
		OMP_NUM_THREADS=1 DRSN_OPS_EMULATOR=$$folder $(PY) -m pytest tests/test_kernels.py tests/test_emulator.py \
			--device emulated -n 2 -k "not 100000 and not 1000003" || exit 1; \
	done

# the operators' tests under ASan and UBSan, on the CPU's kernels and on CUDA's in the emulator
sanitize: $(VENV)/installed
	tools/sanitize.sh

# every .cu for every architecture, where an nvcc is found (REQUIRE_NVCC=1: or fail); no GPU is needed
kernels: $(VENV)/requirements
	tools/compile_kernels.sh

# what the kernels' machine code lets expect of them, into csrc/cuda/README.md; nvcc and nvdisasm are needed, no GPU is
predictions: $(VENV)/installed
	$(PY) -m tools.predictions

# the CPU library for arm64, its loops run under qemu, where there are a cross-compiler and qemu-user (REQUIRE_ARM64=1:
# or fail)
arm64: $(VENV)/installed
	tools/arm64.sh

# PyPI's CUDA compiler into .venv, of the CUDA version of its PyTorch; for one without CUDA, of PyTorch 2.11's. The
# disassembler reads the machine code of older versions too
nvcc: $(VENV)/requirements
	cuda=$$($(PY) -c 'import torch; print(torch.version.cuda or "13.0")') && $(PY) -m pip install \
		--disable-pip-version-check "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==$$cuda.*" nvidia-cuda-nvdisasm

# the sdist and, compiled from it, the wheel, in dist/; for PyTorch 2.11 and newer
wheel: $(VENV)/requirements
	$(PY) tools/wheel.py

# each extra of the wheel in dist/, alone in an environment of its own
extras: $(VENV)/requirements
	$(PY) tools/check_extras.py dist/*.whl

# the sdist and, from it, wheels for the CPU alone, built as others do: with and without isolation
sdist: $(VENV)/requirements
	$(PY) tools/check_sdist.py

checksums:
	cd dist && sha256sum drsn_ops-* > SHA256SUMS

$(VENV)/requirements: requirements.txt
	@sh tools/check_prerequisites.sh "$(PYTHON)"
	test -x $(VENV)/bin/pip || "$(PYTHON)" -m venv $(VENV)
	sed 's/^torch==.*/$(or $(TORCH),&)/' requirements.txt | $(PY) -m pip install --disable-pip-version-check -r /dev/stdin
	@touch $@

$(VENV)/installed: $(VENV)/requirements setup.py pyproject.toml $(shell find csrc -type f)
	@echo "Compiling drsn_ops ..."
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[dev]'
	@touch $@

clean:
	rm -rf build dist *.egg-info drsn_ops/*.so drsn_ops/build_info.json $(VENV)/installed
