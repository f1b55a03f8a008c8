"""This module runs the package's commands: `python -m local_mode --help`."""

import argparse
import sys
from importlib import import_module

from local_mode import images
from local_mode.errors import LocalModeError


def main(words: list[str] | None = None) -> None:
    """Run the command in these words, by default those of the command line."""
    parser = argparse.ArgumentParser(prog='python -m local_mode')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    image = commands.add_parser('image', help='pull or build the image; with LOCAL_MODE=process install its packages')
    image.add_argument('processor', nargs='?', choices=['cpu', 'gpu'], default='cpu')
    image.add_argument('--platform', help="linux/arm64, ...; by default the engine's own")
    image.set_defaults(run=lambda args: images.get(args.processor, args.platform))
    source = commands.add_parser('source', help="print the checksum of the image's sources, its label `source`")
    source.set_defaults(run=lambda args: print(images.source()))
    clean = commands.add_parser('clean', help='remove what your sessions have left or still use')
    clean.set_defaults(run=lambda args: import_module('local_mode.clean').clean())
    args = parser.parse_args(words)
    try:
        args.run(args)
    except LocalModeError as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
