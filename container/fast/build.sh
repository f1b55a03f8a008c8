#!/bin/sh
# Puts chainer_fast.py and its compiled loops into the directory $1.
set -eu
here=$(dirname "$0")
cc -O3 -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror -shared -fPIC -o "$1/libchainer_fast.so" "$here/chainer_fast.c" -lm -lpthread
cp "$here/chainer_fast.py" "$1"
