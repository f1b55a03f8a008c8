# `make` or `make help` lists the commands.
LABEL = chainer-mnist-local-mode
PYTHON = .venv/bin/python
LOCKED = requirements requirements-process tests/requirements container/requirements container/requirements-gpu notebooks/requirements-sdk3

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / { printf "%-13s%s\n", $$1, $$2 }' Makefile

run: setup  ## set up, then run the notebook top to bottom; results in output/
	$(PYTHON) -m local_mode.run

run-sdk3:  ## the same with version 3 of the SDK
	@./setup.sh sdk3
	.venv-sdk3/bin/python -m local_mode.run notebooks/chainer_mnist_sdk_v3.ipynb

lab: setup  ## set up, then open the notebook in JupyterLab, to draw digits
	@for f in notebooks/*.ipynb; do [ -e my-$$f ] || { mkdir -p my-notebooks; cp $$f my-notebooks; }; done
	$(PYTHON) -m jupyterlab $(shell [ $$(id -u) = 0 ] && echo --allow-root) --ServerApp.root_dir=$(CURDIR) \
		--LabApp.default_url=/lab/tree/my-notebooks/chainer_mnist_local_mode.ipynb

test: lint clean  ## set up, clean, then run all tests but those below
	$(PYTHON) -m pytest tests/fast tests/docker tests/process tests/browser container

lint:  ## what ruff says, of style and of faults
	@./setup.sh tests
	.venv/bin/ruff check
	.venv/bin/ruff format --check

test-sdk3: clean  ## set up version 3 of the SDK, and test the notebook for it
	@./setup.sh sdk3
	.venv-sdk3/bin/python -m pytest --confcutdir=tests/sdk3 tests/sdk3

test-gpu:  ## build the GPU image (3 GB) and test it; without a GPU, what can be tested without
	@./setup.sh tests gpu
	$(PYTHON) -m pytest tests/gpu

test-arm64:  ## build the image for arm64, emulated on other machines, and test it
	@./setup.sh arm64
	$(PYTHON) -m pytest tests/arm64

test-chainer:  ## run Chainer's and ChainerMN's own tests in the image, without chainer_fast and with it, in some 10 minutes
	@./setup.sh
	$(PYTHON) tests/chainer_suite.py

test-faults:  ## break what can break, at random, and count what happens, in some 14 minutes
	@./setup.sh tests
	$(PYTHON) -m pytest tests/faults

test-fast:  ## run the tests that need neither Docker nor a browser
	@./setup.sh fast
	$(PYTHON) -m pytest -n 2 --dist loadfile tests/fast container -m 'not docker and not slow'

bench:  ## measure training beside PyTorch, serving beside others' servers, and how drawings are read, in some 28 minutes
	@./setup.sh bench
	.venv-bench/bin/python -m benchmarks.training
	.venv-bench/bin/python -m benchmarks.serving
	.venv-bench/bin/python -m benchmarks.recognition

setup image:  ## set up only; `image` is part of it
	@./setup.sh

lock:  ## pin what the requirements need, with hashes, anew (*.lock), and the image's base, by its digest
	@test -x $(PYTHON) || ./setup.sh
	$(PYTHON) -m pip install --quiet uv==0.13.9
	@for f in $(LOCKED); do \
		case $$f in container/*) python=3.13;; *) python=3.11;; esac; \
		case $$f in \
			requirements) from="pyproject.toml --extra notebook container/chainer/pyproject.toml";; \
			requirements-process) from="pyproject.toml --extra process --constraint requirements.lock";; \
			notebooks/*) from="$$f.txt container/chainer/pyproject.toml";; \
			tests/*) from="pyproject.toml --extra tests container/chainer_fast/pyproject.toml --constraint requirements.lock";; \
			container/*) from="$$f.txt container/requirements.txt container/chainer/pyproject.toml container/chainer_fast/pyproject.toml";; \
		esac; \
		echo "$$f.lock"; .venv/bin/uv pip compile --quiet --upgrade --universal --python-version $$python --generate-hashes \
			--no-emit-index-url --no-header $$from --output-file $$f.lock || exit 1; \
	done
	@echo container/Dockerfile; base=$$(sed -n 's/^ARG BASE=\(.*\)@.*/\1/p' container/Dockerfile); \
		digest=$$(docker pull $$base | sed -n 's/^Digest: //p'); \
		if [ -n "$$digest" ]; then \
			sed "s|^ARG BASE=.*|ARG BASE=$$base@$$digest|" container/Dockerfile > .venv/Dockerfile && cp .venv/Dockerfile container/Dockerfile; \
		else echo "The base of the image stays as it is."; fi

audit:  ## known vulnerabilities of what is locked (asks pypi.org)
	@$(PYTHON) -m pip install --quiet uv==0.13.9
	@failed=0; for f in $(LOCKED); do \
		echo "$$f.lock"; .venv/bin/uv tool run pip-audit==2.10.1 --disable-pip --requirement $$f.lock || failed=1; done; exit $$failed

clean:  ## remove the project's containers, networks and temporary files, those of running notebooks, too
	@pkill -KILL -f '$(LABEL)-.*[/]docker-compose.yaml' 2>/dev/null || true  # it may be about to start a container
	@if [ -x $(PYTHON) ]; then PATH=$(CURDIR)/local_mode/process:$$PATH; export LOCAL_MODE_PYTHON=$(CURDIR)/$(PYTHON); \
		docker ps --all --quiet --filter label=$(LABEL) | xargs docker rm --force; fi
	@if docker info >/dev/null 2>&1; then \
		for id in $$(docker ps --all --quiet --filter label=$(LABEL)); do docker rm --force $$id >/dev/null; done; \
		for id in $$(docker network ls --quiet --filter label=$(LABEL)); do \
			docker network rm $$id >/dev/null || echo "clean: a network is in use"; done; \
	elif command -v docker >/dev/null; then \
		echo "clean: Docker does not answer: start it and run this again, if it may have containers of ours"; \
	fi
	@rm -rf "$${TMPDIR:-/tmp}"/$(LABEL)-*
	@echo "clean: done"

.PHONY: help run lab test lint test-gpu test-arm64 test-chainer test-faults test-fast bench setup image lock audit clean
