#!/bin/sh
# Pins what the requirements need, with hashes, anew, and the image's base, by its digest: `make lock`.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"  # where the set-up may have brought uv

pin() {  # LOCK, the oldest Python, requirements
    echo "$1"
    lock=$1 python=$2
    shift 2
    uv pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url --no-header --no-annotate \
        --no-emit-package chainer --no-emit-package chainer-mnist-local-mode --python-version "$python" \
        --output-file "$lock" "$@"
}

own='container/chainer/pyproject.toml container/chainer_fast/pyproject.toml'
pin container/requirements.lock 3.13 container/requirements.txt container/requirements-gpu.txt \
    container/requirements-build.txt $own
# All that version 2 of the SDK is beside, in one: extras and tests agree on versions, the image's where it names them.
pin locks/project.lock 3.11 requirements.txt pyproject.toml --all-extras $own \
    --constraint container/requirements.txt --constraint container/requirements-build.txt
pin locks/sdk3.lock 3.11 notebooks/requirements-sdk3.txt container/chainer/pyproject.toml

base=$(sed -n 's/^ARG BASE=\(.*\)@.*/\1/p' container/Dockerfile)
digest=$(docker pull "$base" | sed -n 's/^Digest: //p') || true
if [ -n "$digest" ]; then
    sed -i.old "s|^ARG BASE=.*|ARG BASE=$base@$digest|" container/Dockerfile && rm container/Dockerfile.old
else
    echo "The base of the image stays as it is."
fi
