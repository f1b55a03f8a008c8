#!/bin/sh
# `train` and `serve` as SageMaker calls them; anything else runs as it is.
# As root (the default) it first becomes the owner of the mounted directory, so that files
# written there belong to whoever started the container. On SageMaker that owner is root;
# then `serve` gives it up for the workers only, as it installs a user's requirements.
case $1 in
    train) owner=$(stat -c %u:%g /opt/ml/output) ;;
    serve) owner=$(stat -c %u:%g /opt/ml/model) ;;
    *) exec "$@" ;;
esac
# pip installs a user's requirements here, matplotlib keeps its cache here, ssh its keys
export HOME=/tmp/home
mkdir -p -m 700 $HOME
run='setpriv --no-new-privs'
workers=
nobody='--reuid=65534 --regid=65534 --clear-groups'
if [ "$(id -u)" = 0 ] && [ "${owner%:*}" != 0 ]; then
    chown "$owner" $HOME
    run="$run --reuid=${owner%:*} --regid=${owner#*:} --clear-groups"
    if [ "$1" = train ]; then
        # A directory to mount that was not there has been made by Docker, for root.
        for d in model output/data checkpoints; do
            ! [ -d /opt/ml/$d ] || chown "$owner" /opt/ml/$d
        done
        # sshd, mpirun and getpass want a name for the user.
        grep -q ^sagemaker: /etc/passwd || sed -i "1i sagemaker:x:$owner::$HOME:/bin/sh" /etc/passwd || true
    fi
fi
# shellcheck disable=SC2086
if [ "$(id -u)" = 0 ] && [ "${owner%:*}" = 0 ] && [ "$1" = serve ] &&
    [ -z "$(setpriv $nobody find /opt/ml/model /opt/ml/code ! -readable -print -quit 2>&1)" ]; then
    chown 65534:65534 $HOME
    # Some scripts write beside their model. They may, but not to root's files; a read-only mount stays one.
    chgrp 65534 /opt/ml/model 2>/dev/null && chmod g+w,+t /opt/ml/model || true
    workers='--user 65534 --group 65534'
fi
# shellcheck disable=SC2086  # several words
case $1 in
    train) exec $run train ;;
    # A worker that hangs is ended by SIGABRT: without a file of its memory.
    serve) ulimit -c 0; exec $run gunicorn -c /opt/sagemaker-chainer/gunicorn.conf.py $workers ;;
esac
