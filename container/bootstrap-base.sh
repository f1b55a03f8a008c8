#!/bin/sh
# This script writes a build context to stdout, from which `docker build -` makes a base like
# debian:trixie-slim, using the Debian mirror alone. It needs root. $1: amd64, arm64, ...; default: this machine's.
set -eu
command -v debootstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap; } >&2
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
mkdir "$directory/base"
debootstrap ${1:+--arch="$1"} --variant=minbase trixie "$directory/base" http://deb.debian.org/debian >&2
cd "$directory/base"
printf 'deb http://deb.debian.org/%s main\n' 'debian trixie' 'debian trixie-updates' 'debian-security trixie-security' \
    > etc/apt/sources.list
rm -rf usr/share/doc/* usr/share/man/* usr/share/info/* usr/share/locale/* \
    var/cache/apt/*.bin var/cache/apt/archives/*.deb var/lib/apt/lists/*
# A network without a registry often has its own certificates, which pip must trust.
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
    mkdir -p etc/ssl/certs usr/local/share/ca-certificates
    cp /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/
    cp /etc/ssl/certs/ca-certificates.crt usr/local/share/ca-certificates/host.crt
fi
tar -cf ../base.tar .
cd ..
# Not `docker import`: before Docker 23 it labels every image with the engine's own architecture.
printf 'FROM scratch\nADD base.tar /\nCMD ["bash"]\n' > Dockerfile
tar -c Dockerfile base.tar
