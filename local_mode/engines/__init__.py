"""The engines that run containers: interface.py is what local mode asks of one, choose.py takes one."""
