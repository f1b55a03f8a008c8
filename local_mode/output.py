"""This module prints the output of containers for readers of a notebook or a terminal."""

import collections
import contextlib
import datetime
import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

ESCAPE = re.compile(r'\x1b\[[\d;]*[A-Za-z]')  # of a terminal: PrintReport clears lines with one

log = logging.getLogger('local_mode')  # at INFO all is printed as it comes
log.setLevel(logging.WARNING)


class Output:
    """Prints lines of containers; if there are several containers, with the host in front.

    A line that begins with a carriage return, as a progress bar's, is written over by the next.
    begin: part of the line after which to print what its host writes. hide: part of lines that are not printed.
    end: the last hundred lines, also those not printed. patterns: of metrics, {name: regular expression with a
    group for its value}; metrics: all that were found in the lines.
    """

    hide = '\0'

    def __init__(self, begin: str = '', hosts: int = 1, patterns: Mapping[str, re.Pattern[str]] | None = None) -> None:
        self.begin, self.several, self.over, self.patterns = begin, hosts > 1, 0, patterns or {}
        self.begun: set[str] = set()  # hosts
        self.metrics: list[dict[str, Any]] = []
        self.end: collections.deque[str] = collections.deque(maxlen=100)

    def write(self, host: str, line: str) -> None:
        """Take a line, with its end, and print it or not."""
        for name, pattern in self.patterns.items():
            for found in pattern.finditer(line):
                with contextlib.suppress(ValueError, IndexError, TypeError):  # no number: CloudWatch takes none either
                    metric = dict(MetricName=name, Timestamp=datetime.datetime.now(), Value=float(found[1]))
                    self.metrics.append(metric)
        before = f'{host} | ' * self.several
        line = before + line
        self.end.append(line if line.endswith('\n') else line + '\n')
        if log.isEnabledFor(logging.INFO):
            sys.stdout.write(line)
        elif not self.begin or host in self.begun:
            if self.hide not in line:
                self.show(ESCAPE.sub('', line).rstrip())
        elif self.begin in line:
            self.begun.add(host)
            self.end = collections.deque((one for one in self.end if not one.startswith(before)), self.end.maxlen)

    def show(self, text: str) -> None:
        self.close()
        self.over = len(text) if text.startswith('\r') else 0
        sys.stdout.write(text if self.over else text + '\n')

    def close(self) -> None:
        """Wipe a progress bar that nothing more will write over."""
        sys.stdout.write(f'\r{" " * self.over}\r' * bool(self.over))
        self.over = 0

    def tail(self) -> str:
        """Return a sentence with the last lines."""
        return f'Its log ends:\n{"".join(self.end)}'
