"""This package generates synthetic handwriting: digits in many styles, as strokes and as the pad's pixels."""
