"""What a command says when the memory of its device runs out. No torch before that."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mixgrpo.errors import DeviceMemoryError, MixGRPOError


@contextmanager
def memory_told(doing: Callable[[], str], advice: Callable[[], str]) -> Iterator[None]:
    """Turn torch's error for memory that ran out into ours, which says what was being done and what to do.

    Raises:
        DeviceMemoryError: if the memory ran out.
    """
    try:
        yield
    except MixGRPOError:
        raise
    except RuntimeError as error:
        from mixgrpo.doctor.shortage import shortage

        said = shortage(error)
        if said is None:
            raise
        raise DeviceMemoryError(f"the memory ran out while {doing()}: {said.rstrip('.')}. {advice()}") from error
