#!/bin/sh
# `train` and `serve` as SageMaker calls them; anything else runs as it is.
# As root (the default) it first becomes the owner of the mounted directory, so that files
# written there belong to whoever started the container. On SageMaker that owner is root.
case $1 in
    train) owner=$(stat -c %u:%g /opt/ml/output) ;;
    serve) owner=$(stat -c %u:%g /opt/ml/model) ;;
    *) exec "$@" ;;
esac
if [ "$(id -u)" = 0 ] && [ "${owner%:*}" != 0 ]; then
    # A directory to mount that was not there has been made by Docker, for root.
    [ "$1" = serve ] || chown "$owner" /opt/ml/model /opt/ml/output/data
    exec setpriv --reuid="${owner%:*}" --regid="${owner#*:}" --clear-groups "$0" "$@"
fi
# pip installs a user's requirements here, matplotlib keeps its cache here
HOME=$(mktemp -d)
export HOME
case $1 in
    train)
        # Before NumPy is loaded: how many CPUs, which ones, and weights on huge pages.
        export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
        # shellcheck disable=SC2046  # one word for each setting
        exec env $(python3 /opt/sagemaker-chainer/cpus.py) train ;;
    serve) exec gunicorn -c /opt/sagemaker-chainer/gunicorn.conf.py ;;
esac
