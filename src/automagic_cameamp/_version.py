"""The one place the version is written; packaging and ``__version__`` both read it."""

__version__ = "0.1.0"
