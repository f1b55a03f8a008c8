"""How many CPUs this container may use, and what OpenBLAS should know of them before it is loaded."""

import os


def cpus():
    """Return the CPU quota (cgroup v1 or v2), rounded up, or else the cores in the affinity mask."""
    cores = len(os.sched_getaffinity(0))
    for path in ('/sys/fs/cgroup/cpu.max', '/sys/fs/cgroup/cpu/cpu.cfs_quota_us'):
        try:
            quota, *period = open(path).read().split()
            period = period or open('/sys/fs/cgroup/cpu/cpu.cfs_period_us').read().split()
        except OSError:
            continue
        if quota not in ('max', '-1'):
            return max(1, min(cores, -(-int(quota) // int(period[0]))))
    return cores


def blas_settings(processes=1):
    """Return the environment for so many processes that share the CPUs; what is set already is left out."""
    settings = {
        'OPENBLAS_NUM_THREADS': str(max(1, cpus() // processes)),
        'OPENBLAS_THREAD_TIMEOUT': '20',  # idle threads spin for 0.5 ms, not 120
    }
    return {name: value for name, value in settings.items() if not os.environ.get(name)}
