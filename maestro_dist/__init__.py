"""MAESTRO at any scale: sparse attention and sparse experts over many unreliable sensors."""

__version__ = "0.1.0"
