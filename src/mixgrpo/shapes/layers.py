"""A network as a list of layers with what each costs: parameters, operations, and what it keeps for the backward pass.

Operations are those of matrix products, convolutions and attention, two for a multiplication with its addition; norms,
activations and sums are not counted. All figures are those of one sample.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Chain = Literal["tokens", "apart", "condition"]
"""`apart`: tokens that the others have not met yet, such as the text before a cross-attention. `condition`: the vector
of time, guidance and pooled text, and what turns it into shifts, scales and gates."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Numbers that a backward pass needs from the forward pass."""

    plain: int = 0
    """In the type that the network computes in."""
    wide: int = 0
    """In float32 under autocast: norms are computed there."""
    adapters: int = 0
    """Inputs of adapters that are converted for them."""

    def __add__(self, other: "Kept") -> "Kept":
        """Return both together."""
        return Kept(self.plain + other.plain, self.wide + other.wide, self.adapters + other.adapters)

    def times(self, number: int) -> "Kept":
        """Return so many times this."""
        return Kept(number * self.plain, number * self.wide, number * self.adapters)

    def bytes(self, *, plain: int, wide: int, adapters: int) -> int:
        """Return the bytes, given those of one number of each kind."""
        return self.plain * plain + self.wide * wide + self.adapters * adapters


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What is trained, and how the backward pass gets what it needs."""

    rank: int = 0
    """Rank of the adapters. 0: every parameter is trained."""
    targets: tuple[str, ...] = ()
    """Names, or ends of names, of the layers with an adapter."""
    checkpointing: bool = False
    """Whether the forward pass keeps only what goes into each block, and computes a block again when it is needed."""
    converts: bool = False
    """Whether each adapter gets its input in another type than the network's, so in a copy of its own."""

    def adapts(self, layer: "Layer") -> bool:
        """Return whether a layer has an adapter."""
        if not self.rank or not layer.outputs:
            return False
        return any(layer.name == target or layer.name.endswith(f".{target}") for target in self.targets)

    def trains(self, layer: "Layer") -> bool:
        """Return whether something of a layer is trained."""
        return self.adapts(layer) if self.rank else layer.parameters > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer. `stage` orders the layers of a chain: a layer depends on those of its chain with a lower stage."""

    name: str
    """Name of the module in its block, as diffusers has it."""
    parameters: int = 0
    operations: int = 0
    """Of the forward pass."""
    rows: int = 0
    """Tokens that a linear layer is applied to."""
    inputs: int = 0
    """Width of what goes into a linear layer; 0 for any other layer."""
    outputs: int = 0
    """Width of what comes out of a linear layer; 0 for any other layer."""
    chain: Chain = "tokens"
    block: int = -1
    """Block that the layer belongs to. -1: before the blocks, or after them with a stage above theirs."""
    stage: int = 0
    unread: bool = False
    """Whether nothing reads its output, so that the backward pass leaves it out."""
    source: str = ""
    """Name of the tensor that goes in, where several layers of a block share it, or layers of several blocks if it
    begins with `*`. One that begins with `=` is kept by the layer before, too. Empty: a tensor of its own."""
    keeps: Kept = Kept()
    """What the gradient of the input needs."""
    keeps_if_trained: Kept = Kept()
    """What only the gradient of the layer's own parameters needs; for a layer of the chain `condition` also what its
    outputs are multiplied with. A linear layer's input is not meant here."""


def linear(
    name: str,
    inputs: int,
    outputs: int,
    *,
    rows: int = 1,
    bias: bool = True,
    chain: Chain = "tokens",
    block: int = -1,
    stage: int = 0,
    source: str = "",
    keeps_if_trained: Kept = Kept(),
) -> Layer:
    """Return a linear layer on `rows` tokens."""
    return Layer(
        name=name,
        parameters=(inputs + bias) * outputs,
        operations=2 * rows * inputs * outputs,
        rows=rows,
        inputs=inputs,
        outputs=outputs,
        chain=chain,
        block=block,
        stage=stage,
        source=source,
        keeps_if_trained=keeps_if_trained,
    )


def attention(
    name: str,
    *,
    heads: int,
    head_width: int,
    rows: int,
    keys: int | None = None,
    chain: Chain = "tokens",
    block: int = -1,
    stage: int = 0,
) -> Layer:
    """Return scaled dot-product attention of `rows` tokens with each other, or with `keys` others.

    It is that of a kernel that keeps no score matrix: queries, keys, values, the result, and a number for each row.
    """
    width = heads * head_width
    keys = rows if keys is None else keys
    return Layer(
        name=name,
        operations=4 * rows * keys * width,
        chain=chain,
        block=block,
        stage=stage,
        keeps=Kept(plain=2 * (rows + keys) * width, wide=rows * heads),
    )


def convolution(name: str, inputs: int, outputs: int, *, kernel: int, pixels: int) -> Layer:
    """Return a square convolution that puts out `pixels` pixels."""
    return Layer(
        name=name,
        parameters=(inputs * kernel * kernel + 1) * outputs,
        operations=2 * pixels * inputs * kernel * kernel * outputs,
    )


@dataclass(frozen=True)
class Network:
    """Layers in the order of the forward pass."""

    layers: Sequence[Layer]
    boundaries: int = 0
    """Numbers that go into the blocks, those of all blocks together."""

    @cached_property
    def parameters(self) -> int:
        """How many parameters there are."""
        return sum(layer.parameters for layer in self.layers)

    @cached_property
    def matrix_parameters(self) -> int:
        """How many of them are weights of linear layers, which autocast converts."""
        return sum(layer.inputs * layer.outputs for layer in self.layers)

    @cached_property
    def largest_matrix(self) -> int:
        """How many weights the largest linear layer has."""
        return max(layer.inputs * layer.outputs for layer in self.layers)

    @cached_property
    def largest_block(self) -> int:
        """How many parameters the largest block has."""
        sizes: dict[int, int] = {}
        for layer in self.layers:
            sizes[layer.block] = sizes.get(layer.block, 0) + layer.parameters
        return max((size for block, size in sizes.items() if block >= 0), default=0)

    def trained_parameters(self, training: Training) -> int:
        """Return how many parameters are trained."""
        if not training.rank:
            return self.parameters
        adapted = [layer for layer in self.layers if training.adapts(layer)]
        return training.rank * sum(layer.inputs + layer.outputs for layer in adapted)

    def forward(self, training: Training | None = None) -> int:
        """Return the operations of a forward pass, with the adapters of `training`."""
        return sum(layer.operations + _adapter(layer, training) for layer in self.layers)

    def backward(self, training: Training) -> int:
        """Return the operations of the backward pass, and of the second forward pass that checkpointing takes.

        A trained linear layer takes as many operations for its weights' gradient as forwards, and any layer as many
        again for its input's, if something before it is trained; attention takes twice its forward operations. (A
        kernel that keeps no score matrix computes it once more, half as much as attention's forward pass: not counted.)
        """
        reach = _Reach.of(self.layers, training)
        again = {layer.block for layer in self.layers if reach.reaches(layer) or training.trains(layer)}
        total = 0
        for layer in self.layers:
            reached, adapter = reach.reaches(layer), _adapter(layer, training)
            if training.checkpointing and layer.block >= 0 and layer.block in again:
                total += layer.operations + adapter
            if layer.unread:
                continue
            if not layer.outputs:
                total += 2 * layer.operations * reached
            else:
                total += layer.operations * (reached + (training.trains(layer) and not training.rank))
            if adapter:
                into = 2 * layer.rows * training.rank * layer.inputs
                total += 2 * adapter - (0 if reached else into)
        return total

    def keeps(self, training: Training, *, passes: int = 1) -> Kept:
        """Return what forward passes keep for one backward pass; with checkpointing, the most at any time."""
        reach = _Reach.of(self.layers, training)
        if not training.checkpointing:
            return _keeps(self.layers, training, reach).times(passes)
        blocks = {layer.block for layer in self.layers if layer.block >= 0}
        outside = _keeps([layer for layer in self.layers if layer.block < 0], training, reach)
        inside = [_keeps([layer for layer in self.layers if layer.block == block], training, reach) for block in blocks]
        largest = max(inside, key=lambda kept: kept.bytes(plain=1, wide=1, adapters=1), default=Kept())
        return (outside + Kept(plain=self.boundaries)).times(passes) + largest


@dataclass(frozen=True, slots=True)
class _Reach:
    """Which layers get an input that depends on something trained."""

    stages: dict[Chain, int]
    """Lowest trained stage of each chain."""
    block: int | None
    """First block whose conditioning is trained, if any is."""

    @classmethod
    def of(cls, layers: Iterable[Layer], training: Training) -> "_Reach":
        trained = [layer for layer in layers if training.trains(layer)]
        stages: dict[Chain, int] = {}
        for layer in trained:
            stages[layer.chain] = min(layer.stage, stages.get(layer.chain, layer.stage))
        return cls(stages, min((layer.block for layer in trained if layer.chain == "condition"), default=None))

    def reaches(self, layer: Layer) -> bool:
        own = layer.stage > self.stages.get(layer.chain, layer.stage)
        if layer.chain == "condition" or layer.stage == 0:
            return own
        return own or (self.block is not None and (layer.block < 0 or layer.block >= self.block))


def _keeps(layers: Iterable[Layer], training: Training, reach: _Reach) -> Kept:
    total, seen = Kept(), set[tuple[int, str]]()
    for layer in layers:
        if layer.unread:
            continue
        if reach.reaches(layer):
            total += layer.keeps
        if training.trains(layer):
            total += _kept_input(layer, training, seen) + (Kept() if training.rank else layer.keeps_if_trained)
    return total


def _adapter(layer: Layer, training: Training | None) -> int:
    """Return the forward operations of a layer's adapter."""
    if training is None or not training.adapts(layer):
        return 0
    return 2 * layer.rows * training.rank * (layer.inputs + layer.outputs)


def _kept_input(layer: Layer, training: Training, seen: set[tuple[int, str]]) -> Kept:
    """Return what the weights' gradients need of a linear layer's input, once for layers that share it."""
    size = layer.rows * layer.inputs
    inner = layer.rows * training.rank if training.rank else 0
    if training.rank and training.converts:
        return Kept(adapters=size + inner)
    key = (-1 if layer.source.startswith("*") else layer.block, layer.source or f"{layer.name}'s own")
    if key in seen or layer.source.startswith("="):
        size = 0
    seen.add(key)
    return Kept(plain=size + inner)
