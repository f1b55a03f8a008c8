#!/bin/sh
# Writes what `docker build -` makes a base like debian:trixie-slim of to stdout, from the Debian mirror alone.
# Needs root. $1: amd64, arm64, ...; else the machine's own.
set -eu
command -v debootstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap; } >&2
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
mkdir "$directory/base"
debootstrap ${1:+--arch="$1"} --variant=minbase trixie "$directory/base" http://deb.debian.org/debian >&2
cd "$directory/base"
cat > etc/apt/sources.list <<EOF
deb http://deb.debian.org/debian trixie main
deb http://deb.debian.org/debian trixie-updates main
deb http://deb.debian.org/debian-security trixie-security main
EOF
rm -rf usr/share/doc/* usr/share/man/* usr/share/info/* usr/share/locale/* \
    var/cache/apt/*.bin var/cache/apt/archives/*.deb var/lib/apt/lists/*
# A network without a registry often has certificates of its own, which pip must trust.
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
    mkdir -p etc/ssl/certs usr/local/share/ca-certificates
    cp /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/
    cp /etc/ssl/certs/ca-certificates.crt usr/local/share/ca-certificates/host.crt
fi
tar -cf ../base.tar .
cd ..
# `docker import` would do, but before Docker 23 it says of every image that it is for the engine's own architecture.
printf 'FROM scratch\nADD base.tar /\nCMD ["bash"]\n' > Dockerfile
tar -c Dockerfile base.tar
