#!/bin/sh
# `train` and `serve` as SageMaker calls them; anything else runs as it is.
# As root (the default) it first becomes the owner of the mounted directory, so that files
# written there belong to whoever started the container. On SageMaker that owner is root.
case $1 in
    train) owner=$(stat -c %u:%g /opt/ml/output) ;;
    serve) owner=$(stat -c %u:%g /opt/ml/model) ;;
    *) exec "$@" ;;
esac
# pip installs a user's requirements here, matplotlib keeps its cache here, ssh its keys
export HOME=/tmp/home
mkdir -p -m 700 $HOME
as_owner=
if [ "$(id -u)" = 0 ] && [ "${owner%:*}" != 0 ]; then
    # A directory to mount that was not there has been made by Docker, for root.
    for d in model output/data checkpoints; do
        [ "$1" = serve ] || ! [ -d /opt/ml/$d ] || chown "$owner" /opt/ml/$d
    done
    chown "$owner" $HOME
    # sshd, mpirun and getpass want a name for the user.
    grep -q ^sagemaker: /etc/passwd || sed -i "1i sagemaker:x:$owner::$HOME:/bin/sh" /etc/passwd || true
    as_owner="setpriv --reuid=${owner%:*} --regid=${owner#*:} --clear-groups"
fi
# shellcheck disable=SC2086  # no word where there is nothing to give up
case $1 in
    train) exec $as_owner train ;;
    serve) exec $as_owner gunicorn -c /opt/sagemaker-chainer/gunicorn.conf.py ;;
esac
