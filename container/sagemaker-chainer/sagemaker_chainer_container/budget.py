"""A budget limits how many requests, or bytes of them, the server holds at a time."""

import contextlib

from werkzeug.exceptions import ServiceUnavailable


class Budget:
    """An amount from which requests reserve parts. left: the amount that is not reserved."""

    def __init__(self, amount):
        self.left = amount


class Reservation(contextlib.AbstractContextManager):
    """One request's part of a budget; it is given back when the `with` block ends."""

    def __init__(self, budget):
        self.budget, self.taken = budget, 0

    def __exit__(self, *_):
        self.give_back()

    def take(self, amount):
        """Reserve this much more. Raises ServiceUnavailable (503) if less is left."""
        if amount > self.budget.left:
            raise ServiceUnavailable('The endpoint has more requests than it can take: try again later.')
        self.budget.left -= amount
        self.taken += amount

    def give_back(self):
        self.budget.left += self.taken
        self.taken = 0
