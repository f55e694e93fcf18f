"""The weights that are trained, those they started from, and their moving average."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from peft import LoraConfig as PeftLoraConfig
from torch import Tensor, nn

from mixgrpo.config.sections import LoraConfig
from mixgrpo.errors import ConfigError
from mixgrpo.models import Conditioning, FlowModel
from mixgrpo.visits import visiting


class Policy:
    """A model whose transformer is trained, in full or through low-rank adapters.

    Trained weights are float32 whatever the rest is. The reference is the starting model: with adapters it is the
    model with adapters off, in full fine-tuning a frozen copy that exists only if asked for.
    """

    def __init__(
        self,
        model: FlowModel,
        lora: LoraConfig,
        *,
        seed: int,
        with_reference: bool,
        ema_decay: float,
        lags: bool = False,
        offload: bool = False,
    ) -> None:
        """Make the transformer of `model` trainable; with `offload`, a copy of the starting model rests on the CPU.

        Raises:
            ConfigError: if no layer of the model has one of the names in `lora.target_modules`.
        """
        self.model = model
        self.uses_lora = lora.rank > 0
        self._frozen: nn.Module | None = None
        self._offload = offload
        if self.uses_lora:
            _add_adapters(model, lora, seed)
        else:
            if with_reference:
                self._frozen = copy.deepcopy(model.transformer)
                if offload:
                    self._frozen.to("cpu")
            model.transformer.requires_grad_(True)
        self._came_in = {name: tensor.dtype for name, tensor in _tensors(model.transformer).items()}
        _make_float32(model.transformer, whole=not self.uses_lora)
        self.trained: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in model.transformer.named_parameters() if parameter.requires_grad
        }
        self.ema_decay = ema_decay
        self.average: dict[str, Tensor] = self._copy() if ema_decay else {}
        self.lagging: dict[str, Tensor] = self._copy() if lags else {}
        """Weights of a sampling policy that lags behind the trained one; empty where the two are one."""

    def velocity(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """Predict with the trained weights."""
        return self.model.velocity(x, sigma, conditioning)

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average towards the trained weights; does nothing without one."""
        for name, average in self.average.items():
            average.lerp_(self.trained[name], 1.0 - self.ema_decay)

    @torch.no_grad()
    def update_lagging(self, keep: float) -> None:
        """Let the sampling policy catch up, keeping the share `keep` of itself; does nothing where it does not lag."""
        for name, lagging in self.lagging.items():
            lagging.lerp_(self.trained[name], 1.0 - keep)

    def averaged(self) -> AbstractContextManager[None]:
        """Use the average, where there is one, in place of the trained weights."""
        return self._using(self.average)

    def sampling(self) -> AbstractContextManager[None]:
        """Use the sampling policy's weights, where it lags behind, in place of the trained weights."""
        return self._using(self.lagging)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Use the weights that training started from in place of the trained weights."""
        trained = self.model.transformer
        if self.uses_lora:
            trained.disable_adapters()  # pyright: ignore[reportCallIssue]
            try:
                yield
            finally:
                trained.enable_adapters()  # pyright: ignore[reportCallIssue]
            return
        if self._frozen is None:
            raise AssertionError("a reference was not asked for when the policy was made")
        with visiting([self._frozen] if self._offload else [], self.model.device):
            self.model.transformer = self._frozen
            try:
                yield
            finally:
                self.model.transformer = trained

    @contextmanager
    def _using(self, weights: dict[str, Tensor]) -> Iterator[None]:
        if not weights:
            yield
            return
        self._exchange(weights)
        try:
            yield
        finally:
            self._exchange(weights)

    def _exchange(self, weights: dict[str, Tensor]) -> None:
        """Exchange the trained weights and `weights` without copying either."""
        for name, parameter in self.trained.items():
            parameter.data, weights[name] = weights[name], parameter.data

    def _copy(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Copy `weights` into the trained weights of the same names."""
        for name, parameter in self.trained.items():
            parameter.copy_(weights[name])

    @torch.no_grad()
    def restore_types(self) -> None:
        """Give every weight the type that it came in, once training is over: some are float32 in a bfloat16 model."""
        tensors = _tensors(self.model.transformer)
        for name, dtype in self._came_in.items():
            if tensors[name].dtype != dtype:
                tensors[name].data = tensors[name].data.to(dtype)


def _add_adapters(model: FlowModel, lora: LoraConfig, seed: int) -> None:
    targets = list(lora.target_modules or model.lora_targets)
    settings = PeftLoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # peft draws the adapters' start from the global generator
        try:
            model.transformer.add_adapter(settings)  # pyright: ignore[reportCallIssue]
        except ValueError as error:
            raise ConfigError(f"lora.target_modules {targets} does not fit this model: {error}") from error
    for name, parameter in model.transformer.named_parameters():
        parameter.requires_grad_("lora_" in name)


def _make_float32(network: nn.Module, *, whole: bool) -> None:
    """Make float32 what is trained of a network, or the whole of it."""
    if whole:
        network.float()
        return
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
