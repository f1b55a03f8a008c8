"""This module adds types to argparse, and an error for hyperparameters that a script does not have."""


def positive(kind):
    """Return an argparse type for numbers above zero; kind: int or float."""

    def parse(text):
        value = kind(text)
        if not 0 < value < float('inf'):
            raise ValueError
        return value

    parse.__name__ = 'positive ' + kind.__name__
    return parse


def fraction(text):
    """Return an argument as a float from 0 to 1. Raises ValueError, from which argparse makes its error."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


fraction.__name__ = 'fraction (from 0 to 1)'


def parse(parser, argv=None):
    """Return the parsed arguments. Exits if one is unknown, except those that SageMaker adds."""
    args, rest = parser.parse_known_args(argv)
    names = (word for word in rest if word.startswith('-') and word.lstrip('-')[:1].isalpha())  # others are values
    unknown = [name for name in names if not name.startswith('--sagemaker_')]
    if unknown:
        parser.error(f'unknown hyperparameter {" ".join(unknown)}')
    return args
