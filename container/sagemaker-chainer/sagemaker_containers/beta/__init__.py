"""This package keeps the place of framework.py."""
