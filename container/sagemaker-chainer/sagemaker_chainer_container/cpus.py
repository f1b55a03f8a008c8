"""This module counts the CPUs that the container may use, and sets OpenBLAS's threads accordingly."""

import os


def cpus():
    """Return the CPU quota (cgroup v1 or v2), rounded up; without a quota, the cores in the affinity mask."""
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
    """Return OpenBLAS's variables for this many processes, except those already set; NumPy's import reads them."""
    settings = {
        'OPENBLAS_NUM_THREADS': str(max(1, cpus() // processes)),
        'OPENBLAS_THREAD_TIMEOUT': '20',  # idle threads spin for 0.5 ms instead of 120 ms
    }
    return {name: value for name, value in settings.items() if not os.environ.get(name)}
