"""Drawn digits: ways to write them, a hand that does, and what the pad makes of its strokes."""
