"""Every error that cfm_lite raises on purpose, and its exit code on the command line.

A message says what was seen, what is allowed, and what to do. Any other error is a bug.
"""

__all__ = [
    "CFMError",
    "CheckpointCorruptError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DiskFullError",
    "DistributedError",
    "DivergenceError",
    "ResumeMismatchError",
    "UntrustedFileError",
]


class CFMError(Exception):
    """The base of all errors below; `exit_code` is what the command line returns.

    >>> ConfigError.exit_code
    2
    """

    exit_code = 1


class ConfigError(CFMError, ValueError):
    """A wrong argument: a shape, a dtype, a label, a time, a weight or an unknown name."""

    exit_code = 2


class DataError(CFMError):
    """A data file that is missing, damaged, or not what its name says."""

    exit_code = 3


class CheckpointError(CFMError):
    """A checkpoint that cannot be found, read or written."""

    exit_code = 4


class CheckpointCorruptError(CheckpointError):
    """A checkpoint whose bytes differ from its manifest."""


class ResumeMismatchError(CheckpointError):
    """A checkpoint of another run, with another architecture, objective or settings."""


class DivergenceError(CFMError):
    """A loss, gradient or sample that is no longer finite."""

    exit_code = 5


class DiskFullError(CFMError):
    """The disk has no room for a new file; no older file was lost."""

    exit_code = 6


class DistributedError(CFMError):
    """A rank that is missing, dead, or disagrees with the others."""

    exit_code = 7


class UntrustedFileError(CFMError):
    """A file that could run code when it is loaded; it was not loaded."""

    exit_code = 8
