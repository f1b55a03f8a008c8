#!/bin/sh
# This script writes a build context to stdout, from which `docker build -` makes a base like
# debian:trixie-slim, using the Debian mirror alone. It needs root. $1: amd64, arm64, ...; default: this machine's.
set -eu
# mmdebstrap, in Debian, takes half the time of debootstrap.
command -v mmdebstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends \
    mmdebstrap arch-test debian-archive-keyring; } >&2
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
# A network without a registry often has its own certificates, which pip must trust.
# shellcheck disable=SC2016  # $1 is the new system's directory
mmdebstrap ${1:+--architectures="$1"} --mode=root --variant=minbase \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='own=/etc/ssl/certs/ca-certificates.crt; [ ! -e $own ] ||
        { install -D -m 644 $own "$1$own"; install -D -m 644 $own "$1/usr/local/share/ca-certificates/host.crt"; }' \
    trixie base.tar "deb http://deb.debian.org/debian trixie main" "deb http://deb.debian.org/debian trixie-updates main" \
    "deb http://deb.debian.org/debian-security trixie-security main" >&2
# Not `docker import`: before Docker 23 it labels every image with the engine's own architecture.
printf 'FROM scratch\nADD base.tar /\nCMD ["bash"]\n' > Dockerfile
tar -c Dockerfile base.tar
