"""What the transformers of several families are built of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mixgrpo.shapes.layers import Kept, Layer, attention, linear

TIME_CHANNELS = 256
"""Sines and cosines of the time and of the guidance."""

ATTENTION_TARGETS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
"""Names in diffusers of the layers of an attention of two streams: those of the picture, then those of the text."""


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of an attention."""

    count: int
    size: int
    """Channels of one head."""

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.count * self.size


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """One of the streams of tokens that meet in an attention, and the names that its layers have."""

    rows: int
    modulation: str
    norms: tuple[str, str]
    """Before the attention, and before the feed-forward layers."""
    projections: tuple[str, ...]
    head_norms: tuple[str, ...]
    out: str
    feed: str


def picture_stream(*, rows: int, modulation: str, norms: tuple[str, str], feed: str) -> Stream:
    """Return the stream of the picture, whose layers in the attention have one name in all families."""
    return Stream(
        rows=rows,
        modulation=modulation,
        norms=norms,
        projections=("to_q", "to_k", "to_v"),
        head_norms=("norm_q", "norm_k"),
        out="to_out.0",
        feed=feed,
    )


def text_stream(*, rows: int, modulation: str, norms: tuple[str, str], feed: str) -> Stream:
    """Return the stream of the text."""
    return Stream(
        rows=rows,
        modulation=modulation,
        norms=norms,
        projections=("add_q_proj", "add_k_proj", "add_v_proj"),
        head_norms=("norm_added_q", "norm_added_k"),
        out="to_add_out",
        feed=feed,
    )


def last_layers(width: int, channels: int, *, rows: int, stage: int) -> list[Layer]:
    """Return what makes `channels` numbers of every token after the blocks."""
    return [
        modulation("norm_out.linear", width, parts=2, rows=rows, block=-1, products=1),
        layer_norm("norm_out.norm", width, rows=rows, block=-1, stage=stage),
        linear("proj_out", width, channels, rows=rows, stage=stage),
    ]


def modulation(name: str, width: int, *, parts: int, rows: int, block: int, products: int) -> Layer:
    """Return the layer that makes shifts, scales and gates; each scale and gate multiplies `rows` tokens."""
    kept = Kept(plain=products * rows * width)
    return linear(
        name, width, parts * width, chain="condition", block=block, stage=2, source="condition", keeps_if_trained=kept
    )


def layer_norm(name: str, width: int, *, rows: int, block: int, stage: int) -> Layer:
    """Return a layer norm without weights."""
    return Layer(name=name, block=block, stage=stage, keeps=Kept(wide=rows * (width + 2)))


def activation(name: str, width: int, *, rows: int, block: int, stage: int) -> Layer:
    """Return an activation that keeps its input."""
    return Layer(name=name, block=block, stage=stage, keeps=Kept(plain=rows * width))


def head_norm(name: str, heads: Heads, *, rows: int, block: int, stage: int) -> Layer:
    """Return the RMS norm of queries or keys, with one weight per channel of a head."""
    return Layer(
        name=name,
        parameters=heads.size,
        block=block,
        stage=stage,
        keeps=Kept(wide=rows * heads.count * (heads.size + 1)),
        keeps_if_trained=Kept(wide=rows * heads.width),
    )


def joint_attention(heads: Heads, *, rows: int, block: int, stage: int) -> Layer:
    """Return the attention of all tokens with each other."""
    return attention("attn", heads=heads.count, head_width=heads.size, rows=rows, block=block, stage=stage)


def two_stream_block(heads: Heads, streams: Sequence[Stream], *, block: int, stage: int) -> list[Layer]:
    """Return a block with weights of their own for each stream, which meet in the attention. It takes four stages."""
    width = heads.width
    before: list[Layer] = []
    after: list[Layer] = []
    for stream in streams:
        rows, (norm, second_norm) = stream.rows, stream.norms
        # kept for the conditioning's gradient: two normed inputs (scales) and two outputs (gates)
        before.append(modulation(stream.modulation, width, parts=6, rows=rows, block=block, products=4))
        before.append(layer_norm(norm, width, rows=rows, block=block, stage=stage))
        before += [
            linear(f"attn.{name}", width, width, rows=rows, block=block, stage=stage, source=norm)
            for name in stream.projections
        ]
        before += [
            head_norm(f"attn.{name}", heads, rows=rows, block=block, stage=stage + 1) for name in stream.head_norms
        ]
        after += [
            linear(f"attn.{stream.out}", width, width, rows=rows, block=block, stage=stage + 1),
            layer_norm(second_norm, width, rows=rows, block=block, stage=stage + 2),
            linear(f"{stream.feed}.net.0.proj", width, 4 * width, rows=rows, block=block, stage=stage + 2),
            activation(f"{stream.feed}.net.0", 4 * width, rows=rows, block=block, stage=stage + 3),
            linear(f"{stream.feed}.net.2", 4 * width, width, rows=rows, block=block, stage=stage + 3),
        ]
    rows = sum(stream.rows for stream in streams)
    return [*before, joint_attention(heads, rows=rows, block=block, stage=stage + 1), *after]


def unread_after_attention(layers: Sequence[Layer], stream: Stream) -> list[Layer]:
    """Return the layers of a block, those of `stream` after the attention marked as read by nothing."""
    last = (f"attn.{stream.out}", stream.norms[1], f"{stream.feed}.")
    return [replace(layer, unread=layer.name.startswith(last)) for layer in layers]
