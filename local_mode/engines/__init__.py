"""The engines run containers: interface.py has their common interface, choose.py chooses one."""
