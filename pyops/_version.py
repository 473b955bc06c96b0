"""The version, where the build and the command line read it without torch."""

__version__ = "0.1.0"
