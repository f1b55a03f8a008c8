"""This module adds types to argparse, and an error for hyperparameters that a script does not have."""


def limited(name, kind, allowed):
    """Return an argparse type for the numbers of this kind that are allowed; argparse's error has the name."""

    def parse(text):
        value = kind(text)
        if not allowed(value):
            raise ValueError
        return value

    parse.__name__ = name
    return parse


def positive(kind):
    """Return an argparse type for numbers above zero; kind: int or float."""
    return limited('positive ' + kind.__name__, kind, lambda value: 0 < value < float('inf'))


fraction = limited('fraction (from 0 to 1)', float, lambda value: 0 <= value <= 1)


def parse(parser, argv=None):
    """Return the parsed arguments. Exits if one is unknown, except those that SageMaker adds."""
    args, rest = parser.parse_known_args(argv)
    names = (word for word in rest if word.startswith('-') and word.lstrip('-')[:1].isalpha())  # others are values
    unknown = [name for name in names if not name.startswith('--sagemaker_')]
    if unknown:
        parser.error(f'unknown hyperparameter {" ".join(unknown)}')
    return args
