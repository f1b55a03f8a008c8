# `make` or `make help` lists the commands.
PYTHON = .venv/bin/python
ifneq ($(filter C POSIX,$(LC_ALL)),)  # else Python cannot read a path with an é in .venv
export LC_ALL = C.UTF-8
endif

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / { printf "%-13s%s\n", $$1, $$2 }' Makefile

run: setup  ## set up, then run the notebook top to bottom; results in output/
	$(PYTHON) -m local_mode.run

run-sdk3:  ## the same with version 3 of the SDK
	@./setup.sh sdk3
	.venv-sdk3/bin/python -m local_mode.run notebooks/chainer_mnist_sdk_v3.ipynb

lab: setup  ## set up, then open the notebook in JupyterLab, to draw digits
	$(call open,$(PYTHON),chainer_mnist_local_mode chainer_mnist_two_hosts)

lab-sdk3:  ## the same with version 3 of the SDK
	@./setup.sh sdk3
	$(call open,.venv-sdk3/bin/python,chainer_mnist_sdk_v3)

# Opens copies of notebooks in JupyterLab, the first of them; their names are cut to what differs. Kernels listen on
# sockets in a directory of this user: whoever connects to a port reads all that they print.
define open
@mkdir -p my-notebooks; for f in $(2); do copy=my-notebooks/$${f#chainer_mnist_}.ipynb; \
		[ -e $$copy ] || cp notebooks/$$f.ipynb $$copy; done
@runtime=$$(mktemp -d /tmp/chainer-mnist-local-mode-XXXXXX) && trap 'rm -rf $$runtime' EXIT INT TERM && \
		JUPYTER_RUNTIME_DIR=$$runtime \
		$(1) -m jupyterlab $(shell [ $$(id -u) = 0 ] && echo --allow-root) --ServerApp.root_dir="$(CURDIR)" \
		--ServerApp.ip=127.0.0.1 --KernelManager.transport=ipc \
		--LabApp.default_url=/lab/tree/my-notebooks/$(patsubst chainer_mnist_%,%,$(firstword $(2))).ipynb
endef

test: lint  ## set up, then run all tests but those below
	$(PYTHON) -m pytest -n 3 --dist loadfile --no-loadscope-reorder tests/fast tests/docker tests/process tests/browser container

lint:  ## check style, faults and types
	@./setup.sh tests
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	$(PYTHON) -m mypy

test-sdk3:  ## set up version 3 of the SDK, and test the notebook for it
	@./setup.sh sdk3
	.venv-sdk3/bin/python -m pytest --confcutdir=tests/sdk3 tests/sdk3

test-gpu:  ## build the GPU image (3 GB) and test it; without a GPU, what can be tested without
	@./setup.sh tests gpu
	$(PYTHON) -m pytest tests/gpu

test-arm64:  ## build the image for arm64, emulated on other machines, and test it
	@./setup.sh arm64
	$(PYTHON) -m pytest tests/arm64

test-chainer:  ## run Chainer's own tests and examples in the image, without chainer_fast and with it, in some 13 minutes
	@./setup.sh
	$(PYTHON) tests/chainer_suite.py
	$(PYTHON) tests/chainer_examples.py

test-faults:  ## break what can break, at random, and count what happens, in some 8 minutes
	@./setup.sh tests
	$(PYTHON) -m pytest -n 2 --dist loadfile tests/faults

test-fast:  ## run the tests that need neither Docker nor a browser
	@./setup.sh fast
	$(PYTHON) -m pytest -n 2 --dist loadfile tests/fast container -m 'not docker and not slow'

bench:  ## measure training beside PyTorch, serving beside others' servers, and how drawings are read, in some 35 minutes
	@./setup.sh bench
	.venv-bench/bin/python -m benchmarks.training
	.venv-bench/bin/python -m benchmarks.serving
	.venv-bench/bin/python -m benchmarks.recognition

bundle: setup  ## write bundle/: all that `BUNDLE=... ./setup.sh` needs on other machines without a network
	@./setup.sh bundle

setup image:  ## set up only; `image` is part of it
	@./setup.sh

lock:  ## pin what the requirements need, with hashes, anew (*.lock), and the image's base, by its digest
	@./setup.sh fast
	@locks/lock.sh

audit:  ## known vulnerabilities of what is locked (asks pypi.org)
	@./setup.sh fast
	@failed=0; for f in locks/project.lock locks/sdk3.lock container/requirements.lock; do \
		echo "$$f"; $(PYTHON) -m uv tool run pip-audit==2.10.1 --disable-pip --requirement $$f || failed=1; done; exit $$failed

clean:  ## remove what sessions of this user left (containers, networks, files), and what running ones use
	@[ ! -x $(PYTHON) ] || $(PYTHON) -m local_mode clean

.PHONY: help run run-sdk3 lab lab-sdk3 test lint test-gpu test-arm64 test-chainer test-faults test-fast bench setup image lock audit clean bundle
