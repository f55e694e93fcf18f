"""How much memory was used at most: on a GPU by torch's tensors, on a CPU by the whole process."""

import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most bytes in use at once since the start, or since `reset_peak_memory`.

    On a GPU: tensors on `device`. Elsewhere: the resident memory of this process, with Python and its libraries.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def reset_peak_memory(device: torch.device) -> int | None:
    """Let `peak_memory_bytes` count from now; return the bytes in use now, None where a system cannot start anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if not _CLEAR_REFS.exists():
        return None
    _CLEAR_REFS.write_text("5", encoding="ascii")  # the kernel's number for the peak of the resident memory
    return _status("VmRSS")


def _status(name: str) -> int:
    """Return a figure of Linux's account of this process, in bytes."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"{_STATUS} has no line {name}")
