"""The errors that `mixgrpo` raises on purpose.

Every one of them says what was given, what is allowed and what to do. The command line prints the message and
ends with exit code 2; each also is the builtin it refines, so that a library user may catch either.
"""


class MixGRPOError(Exception):
    """Base of every error that the user can mend."""


class ConfigError(MixGRPOError, ValueError):
    """A setting, an argument or an input file is wrong."""


class MissingExtraError(MixGRPOError, ImportError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        """Name the `feature`, the `package` it needs and the `extra` that brings it."""
        super().__init__(
            f"{feature} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'mixgrpo[{extra}]'"
        )


class ModelError(MixGRPOError, ValueError):
    """A model folder cannot be read, or is of a family that is not supported."""


class RewardError(MixGRPOError, RuntimeError):
    """A reward failed too often, or returned something that is not a score per image."""


class TrainingError(MixGRPOError, RuntimeError):
    """A run cannot go on: non-finite losses in a row, or a collapsed reward."""


class DeviceMemoryError(MixGRPOError, RuntimeError):
    """The memory of a device is too small for what the settings ask of it."""


class CheckpointError(MixGRPOError, ValueError):
    """A checkpoint or a run folder is missing, incomplete or does not fit the settings."""


class HubError(MixGRPOError, OSError):
    """Something cannot be uploaded to the hub."""
