"""Types for argparse, and a parser that refuses what it does not know."""


def positive(kind):
    """An argparse type: `kind`, and greater than zero."""

    def parse(text):
        value = kind(text)
        if not 0 < value < float('inf'):
            raise ValueError
        return value

    parse.__name__ = 'positive ' + kind.__name__
    return parse


def share(text):
    """An argparse type: a float from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


share.__name__ = 'share (from 0 to 1)'


def parse(parser, argv=None):
    """Return the arguments; exit if one is unknown, but for those that SageMaker adds for itself."""
    args, rest = parser.parse_known_args(argv)
    unknown = [
        word
        for word in rest  # a lone word is the value of one
        if word.startswith('-') and word.lstrip('-')[:1].isalpha() and not word.startswith('--sagemaker_')
    ]
    if unknown:
        parser.error(f'unknown hyperparameter {" ".join(unknown)}')
    return args
