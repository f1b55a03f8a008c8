# What tests and benchmarks need; setup.sh sources this, with its functions, for its arguments other than sdk3.
#   ./setup.sh tests   what the notebook and the tests need; `tests gpu`: and the GPU image, without a GPU, too
#   ./setup.sh fast    what the fast tests need: no Docker, no browser
#   ./setup.sh arm64   what `make test-arm64` needs: the image for arm64, emulated on other machines
#   ./setup.sh bench   what the benchmarks need, PyTorch and others' servers among it, in .venv-bench
# shellcheck shell=bash disable=SC2086,SC2154

# A program, the packages that have it, who needs it.
need() { command -v "$1" >/dev/null || { has_apt && install $2; } || fail "$3 needs '$1' on the PATH."; }

install_test_packages() {
    need cc 'gcc libc6-dev' container/chainer_fast
    tier=tests install_packages locks/project.lock "$ours ./container/chainer_fast ./container/chainercv" \
        requirements.txt pyproject.toml --all-extras container/chainer_fast/pyproject.toml
    cp $venv/installed-tests $venv/installed-notebook  # whose packages are among these
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

# The tests' own registry, which Debian has listen on all interfaces, from now on.
install_registry() {
    command -v docker-registry >/dev/null || ! has_apt || { install docker-registry && {
        quietly as_root systemctl disable --now docker-registry || quietly as_root service docker-registry stop || true; }; }
}

install_tools() { install_registry; need node nodejs input.html; need chromium chromium 'A browser test'; need npm npm axe-core; }

install_benchmarks_tools() {
    need cc 'gcc libc6-dev' container/chainer_fast; need g++ g++ torch.compile; need npm npm 'The fonts'
    need java default-jre-headless "AWS's server"; need wrk wrk 'A benchmark of servers'
}

install_benchmarks_packages() {
    install_packages '' './container/chainer ./container/chainer_fast' benchmarks/requirements.txt
    quietly $python -c 'import torch' || $python -m pip install --quiet --no-deps \
        --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0
}

case $tier in
    tests) step packages install_test_packages; step Docker start_docker; step image build_images
        [ "${2:-}" != gpu ] || step GPU image gpu
        step tools install_tools ;;
    fast) step packages install_test_packages; step tools need node nodejs input.html ;;
    arm64) step packages install_test_packages; step Docker start_docker; step QEMU emulate_arm64
        step image image --platform linux/arm64 ;;
    bench) step tools install_benchmarks_tools; step packages install_benchmarks_packages ;;
    *) fail "unknown argument $tier" ;;
esac
