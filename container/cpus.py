"""How many CPUs this container may use, and what NumPy's OpenBLAS should know of them before it is loaded."""
import os
import re


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


def blas_core(cpuinfo):
    """Return OPENBLAS_CORETYPE for the text of /proc/cpuinfo, None where OpenBLAS finds it by itself.

    NumPy 1.26 has OpenBLAS 0.3.23, which takes Intel's CPUs that are newer (2023) for one of 2004, and
    is four times as slow: https://github.com/OpenMathLib/OpenBLAS/issues/4267
    """
    if 'GenuineIntel' not in cpuinfo:
        return None
    line = re.search(r'^flags\s*:(.*)', cpuinfo, re.MULTILINE)
    flags = set(line[1].split()) if line else set()
    if flags >= {'avx512f', 'avx512bw', 'avx512dq', 'avx512vl'}:
        return 'SkylakeX'
    return 'Haswell' if flags >= {'avx2', 'fma'} else None


def blas_settings(processes=1):
    """Return the environment for so many processes that share the CPUs; what is set already is left out."""
    settings = {'OPENBLAS_NUM_THREADS': str(max(1, cpus() // processes)),
                'OPENBLAS_THREAD_TIMEOUT': '20',  # idle threads spin for 0.5 ms, not 120
                'OPENBLAS_CORETYPE': blas_core(open('/proc/cpuinfo').read())}
    return {name: value for name, value in settings.items() if value and not os.environ.get(name)}
