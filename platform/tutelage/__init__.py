"""Generalist models teach a specialist."""

__version__ = "0.1.0"
