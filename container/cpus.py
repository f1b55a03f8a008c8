"""How many CPUs this container may use."""
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


if __name__ == '__main__':
    print(cpus())
