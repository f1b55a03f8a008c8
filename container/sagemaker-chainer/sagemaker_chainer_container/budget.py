"""A reservation limits the bytes of request bodies that the server holds at a time."""

import contextlib

from werkzeug.exceptions import ServiceUnavailable

from sagemaker_chainer_container.body import MAX_PAYLOAD

FULL = 'The endpoint has more requests than it can take: try again later.'


class Reservation(contextlib.AbstractContextManager):
    """The bytes of one request's body, of all that may be reserved; they are given back when the `with` block ends."""

    left, taken = 16 * MAX_PAYLOAD, 0

    def __exit__(self, *_):
        self.give_back()

    def take(self, amount):
        """Reserve this much more. Raises ServiceUnavailable (503) if less is left."""
        if amount > Reservation.left:
            raise ServiceUnavailable(FULL)
        Reservation.left -= amount
        self.taken += amount

    def give_back(self):
        Reservation.left += self.taken
        self.taken = 0
