"""Every error that cfm_lite raises on purpose, and the exit code that the command line gives it.

A message says what was seen, what is allowed, and what to do. Anything else that escapes is a bug.
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
    """The base of all errors below; `exit_code` is what the command line returns."""

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
    """A checkpoint of another run: other architecture, objective or settings."""


class DivergenceError(CFMError):
    """A loss, gradient or sample that is no longer finite."""

    exit_code = 5


class DiskFullError(CFMError):
    """Not enough room for what was to be written; nothing older was lost."""

    exit_code = 6


class DistributedError(CFMError):
    """A rank that is missing, dead, or disagrees with the others."""

    exit_code = 7


class UntrustedFileError(CFMError):
    """A file that would run code when loaded; it was not loaded."""

    exit_code = 8
