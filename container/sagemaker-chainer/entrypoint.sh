#!/bin/sh
# SageMaker starts the container with `train` or `serve`; any other command runs unchanged.
# If it starts as root (the default), it first becomes the owner of the mounted directory, so that
# files written there belong to the user who started the container. On SageMaker that owner is root:
# then only the workers of `serve` change user, as installing a user's requirements needs root.
case $1 in
    train) owner=$(stat -c %u:%g /opt/ml/output) ;;
    serve) owner=$(stat -c %u:%g /opt/ml/model) ;;
    *) exec "$@" ;;
esac
# pip's user packages, matplotlib's cache and ssh's keys are here
export HOME=/tmp/home
mkdir -p -m 700 $HOME
run='setpriv --no-new-privs'
workers=
nobody='--reuid=65534 --regid=65534 --clear-groups'
if [ "$(id -u)" = 0 ] && [ "${owner%:*}" != 0 ]; then
    chown "$owner" $HOME
    run="$run --reuid=${owner%:*} --regid=${owner#*:} --clear-groups"
    if [ "$1" = train ]; then
        # Docker creates missing mount points as root.
        for d in model output/data checkpoints; do
            ! [ -d /opt/ml/$d ] || chown "$owner" /opt/ml/$d
        done
        # sshd, mpirun and getpass need a name for the user.
        grep -q ^sagemaker: /etc/passwd || sed -i "1i sagemaker:x:$owner::$HOME:/bin/sh" /etc/passwd || true
    fi
fi
# shellcheck disable=SC2086
if [ "$(id -u)" = 0 ] && [ "${owner%:*}" = 0 ] && [ "$1" = serve ] &&
    [ -z "$(setpriv $nobody find /opt/ml/model /opt/ml/code ! -readable -print -quit 2>&1)" ]; then
    chown 65534:65534 $HOME
    # A script may write beside its model, but not change root's files; on a read-only mount this fails.
    chgrp 65534 /opt/ml/model 2>/dev/null && chmod g+w,+t /opt/ml/model || true
    workers='--user 65534 --group 65534'
fi
# shellcheck disable=SC2086  # several words
case $1 in
    train) exec $run train ;;
    # gunicorn ends a hanging worker by SIGABRT; it should leave no core dump.
    serve) ulimit -c 0; exec $run gunicorn -c /opt/sagemaker-chainer/gunicorn.conf.py $workers ;;
esac
