"""This module runs `python -m local_mode clean`, which removes what this user's sessions have left or still use.

It removes only what was started with this TMPDIR: what belongs to another user or another TMPDIR stays.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile

import psutil
from local_mode.engines.docker import Docker
from local_mode.engines.processes import Processes
from local_mode.errors import EngineError
from local_mode.names import LABEL, label, of_this_user


def clean() -> None:
    """Remove containers, networks, processes and temporary directories; print what could not be removed."""
    end_commands()
    Processes.noticed = True
    failed = False
    for engine in [*map(Docker, filter(shutil.which, ('docker', 'podman'))), Processes()]:
        try:
            engine.reach()
            engine.remove(of_this_user())
        except EngineError as e:
            failed = True
            print(f'clean: {e}\nclean: if some of your containers may be left, run this again after that')
    for directory in pathlib.Path(tempfile.gettempdir()).glob(f'{LABEL}-*'):
        if directory.lstat().st_uid == os.getuid():
            shutil.rmtree(directory, ignore_errors=True)
    if not failed:
        print('clean: done')


def end_commands() -> None:
    """End commands of killed notebooks that are about to start a container."""
    option = f'--label={label("tmp")}={of_this_user()[label("tmp")]}'
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == os.getuid() and option in process.cmdline():
                process.kill()
