"""Millstream: exactly-once stream processing in Python."""

__version__ = "0.1.0"
