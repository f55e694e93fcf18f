"""Locks for processes that share a folder. The system holds them, so that one is gone when its process is.

They are locks on files (flock, which Linux passes on to the server of an NFS disk); that a lock's file is there means
nothing. All nodes see them if the disk is mounted so: see `docs/models.md`.
"""

import re
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from mixgrpo.errors import ConfigError

_FOLDER = ".locks"


def lock_of(folder: Path, name: str) -> FileLock:
    """Return the lock `name` of what processes share in `folder`, not yet held."""
    locks = folder / _FOLDER
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / re.sub(r"[^\w.-]", "-", name))


def try_lock(folder: Path, name: str) -> FileLock | None:
    """Take the lock `name` of `folder` and return it, to be released; None while another process holds it.

    Raises:
        ConfigError: The disk of `folder` has no locks.
    """
    try:
        lock = lock_of(folder, name)
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        raise _no_locks(folder, str(error)) from error
    if isinstance(lock, SoftFileLock):  # what filelock makes of itself there, and what outlives a killed process
        lock.release()
        raise _no_locks(folder, "it has no flock")
    return lock


def _no_locks(folder: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{folder} cannot be shared between processes: no file can be locked there ({why}). Choose a folder on a local "
        "disk, or on a network disk that is mounted with locks"
    )
