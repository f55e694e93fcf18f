"""Where and how the network of a reward runs: options that all rewards with a network have."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from mixgrpo.errors import ConfigError
from mixgrpo.visits import visiting

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a network is, what it computes in, and how much it takes at once."""

    device: str = "auto"
    """A torch device, such as `cpu` or `cuda:1`; `auto`: cuda if there is one, else the CPU."""
    dtype: str = "float32"
    """float32, float16 or bfloat16."""
    batch_size: int = 16
    """Pictures, or texts, that go through the network at once."""
    offload: bool = False
    """Let the network wait on the CPU while it scores nothing: less memory on the device, a copy for every batch."""

    def __post_init__(self) -> None:
        """Find mistakes before weights are loaded.

        Raises:
            ConfigError: if there is one.
        """
        if self.dtype not in DTYPES:
            raise ConfigError(f"a reward's options.dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.batch_size < 1:
            raise ConfigError(f"a reward's options.batch_size must be at least 1, got {self.batch_size}")
        try:
            kind = self.torch_device.type
        except RuntimeError as error:
            message = f"a reward's options.device {self.device!r} is no torch device: use auto, cpu or cuda:0"
            raise ConfigError(message) from error
        if kind == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"a reward's options.device is {self.device!r}, but torch sees no CUDA device here: use auto or cpu"
            )

    @property
    def torch_device(self) -> torch.device:
        """`device` as torch has it. A bare cuda has its number, for the scorer's threads have a current device each."""
        has_cuda = torch.cuda.is_available()
        picked = torch.device(("cuda" if has_cuda else "cpu") if self.device == "auto" else self.device)
        if picked.type == "cuda" and picked.index is None and has_cuda:
            return torch.device("cuda", torch.cuda.current_device())
        return picked

    @property
    def resting_place(self) -> torch.device:
        """Where the network is between two batches."""
        return torch.device("cpu") if self.offload else self.torch_device

    def at_work(self, network: nn.Module) -> AbstractContextManager[None]:
        """Have a network on its device meanwhile, if it rests elsewhere."""
        return visiting([network] if self.offload else [], self.torch_device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch has it."""
        return DTYPES[self.dtype]
