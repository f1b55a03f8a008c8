"""This module finds the notebook cell that runs now, so that a cell that runs again replaces what it started."""

import sys
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """A run of a cell; both fields are empty outside of notebooks."""

    name: str  # the front end's id of it, or its code
    run: str

    def ran_before(self, other: 'Cell') -> bool:
        """Return whether `other` is an earlier run of this cell."""
        return bool(self.name) and self.name == other.name and self.run != other.run


def get_shell() -> Any:
    """Return IPython's shell if this process is one, or None."""
    return 'IPython' in sys.modules and sys.modules['IPython'].get_ipython() or None


def current() -> Cell:
    """Return the cell that runs now."""
    request: dict[str, Any] = getattr(get_shell(), 'get_parent', dict)()
    if 'header' not in request:  # not in a kernel, or no cell runs
        return Cell('', '')
    return Cell(request['metadata'].get('cellId') or request['content'].get('code', ''), request['header']['msg_id'])
