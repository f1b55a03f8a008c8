"""What requests share: a number of them, or of bytes, that may be taken in at a time."""

from werkzeug.exceptions import ServiceUnavailable


class Budget:
    """An amount of which requests take shares."""

    def __init__(self, amount):
        self.left = amount

    def share(self):
        return Share(self)


class Share:
    """What one request takes, until its `with` block ends."""

    def __init__(self, budget):
        self.budget, self.taken = budget, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.give_back()

    def take(self, amount):
        """Take more; ServiceUnavailable (503) where so much is not left."""
        if amount > self.budget.left:
            raise ServiceUnavailable('The endpoint has more requests than it can take: try again later.')
        self.budget.left -= amount
        self.taken += amount

    def give_back(self):
        self.budget.left += self.taken
        self.taken = 0
