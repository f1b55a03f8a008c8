#!/bin/bash
# Sets up what the notebook needs, and says what it does: a Python environment (.venv), a Docker
# engine, the container image, MNIST in Chainer's cache. Quick where nothing is missing.
#   ./setup.sh         all of that; where Docker cannot be had, or LOCAL_MODE=process, what does without it
#   ./setup.sh tests   ... and what the tests need besides; `tests gpu`: and the GPU image, without a GPU, too
#   ./setup.sh fast    what the fast tests need: no Docker, no browser
#   ./setup.sh arm64   what `make test-arm64` needs: the image for arm64, emulated on other machines
#   ./setup.sh sdk3    what the notebook for version 3 of the SDK needs, in .venv-sdk3
#   ./setup.sh bench   what the benchmarks need, PyTorch and others' servers among it, in .venv-bench
#   ./setup.sh source  nothing; prints the checksum of container/, the image's label `source`
set -euo pipefail
cd "$(dirname "$0")"

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    # Without a terminal (a notebook's cell) sudo could not ask for a password.
    elif [ -t 0 ]; then sudo "$@"
    else sudo -n "$@" || fail "'$*' needs root: run ./setup.sh once in a terminal."
    fi
}

install() {
    say "installing $*"
    as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

has_apt() { command -v apt-get >/dev/null; }
quietly() { "$@" >/dev/null 2>&1; }
venv=.venv first=python3
case ${1:-} in
    bench) venv=.venv-bench ;;
    sdk3) venv=.venv-sdk3 first="python3.13 ${PYENV_ROOT:-$HOME/.pyenv}/versions/3.13.*/bin/python" ;;
esac
python=$venv/bin/python

make_venv() {
    local version_check='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
    if quietly $python -c "$version_check"; then return; fi
    rm -rf $venv
    for candidate in $first python3 python3.13 python3.12 python3.11 python3.14; do
        quietly $candidate -c "$version_check" || continue
        say "creating $venv with $($candidate --version)"
        # Debian packs the part of venv that brings pip separately.
        quietly $candidate -c 'import ensurepip' || ! has_apt ||
            install "python$($candidate -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
        $candidate -m venv $venv
        return
    done
    command -v uv >/dev/null || fail "There is no Python from 3.11 to 3.14. Install one," \
        "or uv (https://docs.astral.sh/uv/), which fetches one, and run this again."
    uv venv --seed --python 3.13 $venv
}

install_packages() {
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    # The build in container/chainer knows pip's index from here only.
    export PIP_INDEX_URL=${PIP_INDEX_URL:-$($python -m pip config get global.index-url 2>/dev/null || echo https://pypi.org/simple)}
    for requirements in "$@"; do
        installed=$venv/installed-${requirements//\//-}
        if ! cmp -s "$requirements" "$installed"; then
            say "installing the packages of $requirements"
            # A lock (`make lock`) has hashes, and pip then takes nothing without.
            $python -m pip install --quiet --requirement "$requirements"
            cp "$requirements" "$installed"
        fi
    done
}

install_notebook_packages() {
    install_packages "${1:-requirements.lock}"
    install_sources container/chainer
    # This project itself, in place: `import local_mode` works wherever a notebook or a test is.
    if ! cmp -s pyproject.toml $venv/installed-pyproject.toml; then
        $python -m pip install --quiet --no-deps --editable .
        cp pyproject.toml $venv/installed-pyproject.toml
    fi
}

# Our own packages, built anew when they have changed.
install_sources() {
    for directory in "$@"; do
        installed=$venv/installed-${directory//\//-}
        if [ "$(checksum "$directory")" != "$(cat "$installed" 2>/dev/null)" ]; then
            say "building $directory"
            rm -rf "$directory/build"  # setuptools does not see that flags have changed
            $python -m pip install --quiet --no-deps --force-reinstall "./$directory"
            checksum "$directory" > "$installed"
        fi
    done
}

checksum() {
    find "$1" \( -name build -o -name '*.egg-info' -o -name __pycache__ \) -prune -o -type f -print | LC_ALL=C sort | xargs cat | cksum
}

container_source() { checksum container | cut -d' ' -f1; }

# What `train` and `serve` need as processes, where there is no Docker.
install_processes() {
    say "without Docker, training and hosting will run as processes of this machine"
    if command -v cc >/dev/null; then
        install_packages requirements-process.lock
        install_sources container/chainer_fast
    else
        say "there is no C compiler for chainer_fast: training will take longer"
        # All that sagemaker-training compiles is for MPI.
        CC=true LDSHARED=true install_packages requirements-process.lock
    fi
}

# Whether Docker is here or can be installed; LOCAL_MODE=process asks to do without, LOCAL_MODE=docker not to.
can_have_docker() {
    case ${LOCAL_MODE:-} in
        docker) ;;
        process) return 1 ;;
        *) command -v docker >/dev/null || (has_apt && install docker.io) ;;
    esac
}

start_docker() {
    if ! command -v docker >/dev/null || { ! quietly docker info && ! command -v dockerd >/dev/null && [ "$(uname)" = Linux ]; }; then
        has_apt || fail "Docker is not installed: see https://docs.docker.com/get-docker/."
        install docker.io
    fi
    if ! quietly docker compose version && ! command -v docker-compose >/dev/null; then
        has_apt || fail "Docker Compose is not installed: see https://docs.docker.com/compose/install/."
        # Ubuntu's docker-compose is an old one that its own Python cannot run.
        if apt-cache show docker-compose-v2 2>/dev/null | grep -q ^Package; then install docker-compose-v2
        else install docker-compose; fi
    fi
    if ! quietly docker info; then
        case $(docker info 2>&1) in *'permission denied'*)
            fail "You may not use Docker: sudo usermod -aG docker $(id -un), log in again, and run this again." \
                "Or do without: LOCAL_MODE=process";;
        esac
        say "starting the Docker engine"
        if [ "$(uname)" = Linux ]; then
            if [ -d /run/systemd/system ]; then as_root systemctl start docker || true
            else quietly as_root service docker start || true; fi
            # Without an init system, or where it may not do what its script wants, by hand.
            docker_answers 10 ||
                as_root sh -c 'setsid -f dockerd </dev/null >/var/log/dockerd.log 2>&1'
        fi
        docker_answers 30 || fail "The Docker engine does not answer: start it (on a Mac, open Docker Desktop)."
    fi
}

docker_answers() {
    for _ in $(seq "$1"); do quietly docker info && return; sleep 1; done
    return 1
}

# Lets the kernel run arm64's programs, those in containers too.
emulate_arm64() {
    local kernel=/proc/sys/fs/binfmt_misc
    if [ "$(docker version --format '{{.Server.Arch}}')" = arm64 ] || [ "$(uname)" != Linux ] ||
        [ -e $kernel/qemu-aarch64 ]; then return; fi
    { has_apt && install qemu-user-static; } || fail "The image for arm64 needs QEMU, registered in $kernel."
    # Without an init system, by hand.
    [ -e $kernel/qemu-aarch64 ] || as_root sh -c "[ -e $kernel/register ] || mount -t binfmt_misc binfmt_misc $kernel
        cat /usr/lib/binfmt.d/qemu-aarch64.conf > $kernel/register"
}

# For build_image: takes the published image, by its digest, if it is of this very container/.
pull_image() {
    local published label
    published=$(sed -n "s/^$processor \(.*\) $source\$/\1/p" images.lock)
    [ -n "$published" ] || return 1
    say "pulling $published"
    quietly docker pull --platform "linux/$architecture" "$published" || { say "cannot pull it"; return 1; }
    label=$(docker image inspect --format '{{index .Config.Labels "source"}}' "$published")
    [ "$label" != "$source" ] || docker tag "$published" $image || return 1
    quietly docker rmi "$published"  # else the engine takes no other architecture by this digest
    [ "$label" = "$source" ] || { say "it is not of this container/"; return 1; }
}

# Pulls or builds anew when container/ has changed. $1: cpu or gpu; $2: arm64, else what the engine's machine is.
build_image() {
    local processor=$1 image=sagemaker-chainer:7.8.1-$1-py313${2:+-$2}
    local architecture=${2:-$(docker version --format '{{.Server.Arch}}')}
    base=$(sed -n 's/^ARG BASE=//p' container/Dockerfile)
    source=$(container_source)
    if [ "$(docker image inspect --format '{{index .Config.Labels "source"}}' $image 2>/dev/null)" != "$source" ] &&
        ! pull_image; then
        # By one digest an engine keeps the base of one architecture.
        if [ "$(docker image inspect --format '{{.Architecture}}' $base 2>/dev/null)" != "$architecture" ] &&
            ! quietly docker pull --platform "linux/$architecture" $base; then
            local pinned=$base
            base=sagemaker-chainer-base:trixie${2:+-$2}
            if ! quietly docker image inspect $base; then
                say "cannot pull $pinned: making the base from Debian's packages"
                command -v debootstrap >/dev/null || { has_apt && install debootstrap; } ||
                    fail "Without a registry the base image needs debootstrap, which Debian and Ubuntu have."
                as_root container/bootstrap-base.sh "$architecture" |
                    docker build --quiet --platform "linux/$architecture" --tag $base - >/dev/null
            fi
        fi
        say "building $image"
        docker build --platform "linux/$architecture" --build-arg BASE=$base --build-arg PROCESSOR="$processor" --label source="$source" --tag $image container
    fi
}

build_images() {
    build_image cpu
    if [ "${2:-}" = gpu ]; then
        build_image gpu
    elif quietly nvidia-smi; then
        build_image gpu || say "there is no image for the GPU: the CPU's will do"
    fi
}

install_test_packages() {
    install_notebook_packages
    install_packages requirements-process.lock tests/requirements.lock
    install_compiler
    install_sources container/chainer_fast
}

install_chromium() {
    command -v chromium >/dev/null || { has_apt && install chromium; } ||
        fail "The browser tests need a 'chromium' on the PATH."
}

install_node() {
    command -v node >/dev/null || { has_apt && install nodejs; } ||
        fail "The tests of input.html need Node."
}

# The test of pull_image pushes to a registry of its own.
install_registry() {
    command -v docker-registry >/dev/null && return
    has_apt || return 0  # its test is then skipped
    install docker-registry
    # Debian has it listen on all interfaces, from now on.
    if [ -d /run/systemd/system ]; then as_root systemctl disable --quiet --now docker-registry
    else quietly as_root service docker-registry stop || true; fi
}

install_compiler() {
    command -v cc >/dev/null || { has_apt && install gcc libc6-dev; } ||
        fail "container/chainer_fast needs a C compiler."
}

# Java for AWS's server, wrk asks the servers, torch.compile needs g++, npm fetches fonts.
install_benchmarks() {
    for tool in java:default-jre-headless wrk:wrk g++:g++ npm:npm; do
        command -v ${tool%:*} >/dev/null || { has_apt && install ${tool#*:}; } || fail "The benchmarks need ${tool%:*}."
    done
    quietly $python -c 'import torch' || $python -m pip install --quiet --no-deps \
        --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0
}

if [ "${1:-}" = source ]; then container_source; exit; fi
make_venv
case ${1:-} in
    '') install_notebook_packages
        if can_have_docker; then start_docker; build_images; else install_processes; fi ;;
    tests) install_test_packages; start_docker; build_images "$@"; install_node; install_chromium; install_registry ;;
    fast) install_test_packages; install_node ;;
    arm64) install_test_packages; start_docker; emulate_arm64; build_image cpu arm64 ;;
    sdk3) install_notebook_packages notebooks/requirements-sdk3.lock; start_docker; build_images ;;
    bench) install_compiler; install_packages benchmarks/requirements.txt; install_sources container/chainer container/chainer_fast
        install_benchmarks ;;
    *) fail "unknown argument $1" ;;
esac
$python -m local_mode.mnist  # where chainer.datasets.get_mnist() looks for it
say "ready"
