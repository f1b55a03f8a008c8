# What tests and benchmarks need; setup.sh sources this, with its functions, for its arguments other than sdk3.
#   ./setup.sh tests   what the notebook and the tests need; `tests gpu`: and the GPU image, without a GPU, too
#   ./setup.sh fast    what the fast tests need: no Docker, no browser
#   ./setup.sh arm64   what `make test-arm64` needs: the image for arm64, emulated on other machines
#   ./setup.sh bench   what the benchmarks need, PyTorch and others' servers among it, in .venv-bench
# shellcheck shell=bash disable=SC2154

need_compiler() { need cc "container/chainer_fast needs" gcc libc6-dev; }

install_test_packages() {
    need_compiler
    install_packages locks/project.lock '--editable . ./container/chainer ./container/chainer_fast' \
        requirements.txt pyproject.toml --all-extras container/chainer_fast/pyproject.toml
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

# Installs a program's packages if it is missing. $1: the program; $2: who needs it; the others: the packages.
need() {
    command -v "$1" >/dev/null || { has_apt && install "${@:3}"; } || fail "$2 a '$1' on the PATH."
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

# Java for AWS's server, wrk asks the servers, torch.compile needs g++, npm fetches fonts.
install_benchmarks() {
    for tool in java:default-jre-headless wrk:wrk g++:g++ npm:npm; do
        need ${tool%:*} "The benchmarks need" ${tool#*:}
    done
    quietly $python -c 'import torch' || $python -m pip install --quiet --no-deps \
        --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0
}

case $tier in
    tests) install_test_packages; start_docker; build_images
        if [ "${2:-}" = gpu ]; then image gpu; fi
        need node "The tests of input.html need" nodejs
        need chromium "The browser tests need" chromium
        install_registry ;;
    fast) install_test_packages; need node "The tests of input.html need" nodejs ;;
    arm64) install_test_packages; start_docker; emulate_arm64; image --platform linux/arm64 ;;
    bench) need_compiler; install_packages '' './container/chainer ./container/chainer_fast' benchmarks/requirements.txt
        install_benchmarks ;;
    *) fail "unknown argument $tier" ;;
esac
