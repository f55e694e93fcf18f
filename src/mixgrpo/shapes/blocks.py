"""What the transformers of several families are built of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mixgrpo.shapes.layers import Chain, Kept, Layer, attention, linear

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
    """Empty: one layer before the blocks makes the shifts, scales and gates of all."""
    parts: int = 6
    """How many shifts, scales and gates there are."""
    products: int = 4
    """Tensors that scales and gates multiply: two normed inputs and two outputs."""
    norms: tuple[str, str]
    """Before the attention, and before the feed-forward layers."""
    projections: tuple[str, ...]
    head_norms: tuple[str, ...]
    out: str
    """Empty: what the attention gives this stream is thrown away."""
    feed: str
    """Empty: there are no feed-forward layers."""
    bias: bool = True
    chain: Chain = "tokens"
    """Chain of the layers before the attention."""


class FeedForward(Protocol):
    """Makes the feed-forward layers of a block; they take two stages."""

    def __call__(self, name: str, width: int, *, rows: int, block: int, stage: int) -> list[Layer]:
        """Return them for `rows` tokens."""
        ...


def picture_stream(
    *, rows: int, modulation: str, norms: tuple[str, str], feed: str, bias: bool = True, head_norms: bool = True
) -> Stream:
    """Return the stream of the picture, whose layers in the attention have one name in all families."""
    return Stream(
        rows=rows,
        modulation=modulation,
        norms=norms,
        projections=("to_q", "to_k", "to_v"),
        head_norms=("norm_q", "norm_k") if head_norms else (),
        out="to_out.0",
        feed=feed,
        bias=bias,
    )


def text_stream(
    *, rows: int, modulation: str, norms: tuple[str, str], feed: str, bias: bool = True, head_norms: bool = True
) -> Stream:
    """Return the stream of the text, which differs in the names in the attention."""
    picture = picture_stream(rows=rows, modulation=modulation, norms=norms, feed=feed, bias=bias)
    return replace(
        picture,
        projections=("add_q_proj", "add_k_proj", "add_v_proj"),
        head_norms=("norm_added_q", "norm_added_k") if head_norms else (),
        out="to_add_out",
    )


def flux_streams(*, text: int, image: int, head_norms: bool = True) -> tuple[Stream, Stream]:
    """Return picture and text with the names that they have in FLUX.1 and others."""
    return (
        picture_stream(
            rows=image, modulation="norm1.linear", norms=("norm1.norm", "norm2"), feed="ff", head_norms=head_norms
        ),
        text_stream(
            rows=text,
            modulation="norm1_context.linear",
            norms=("norm1_context.norm", "norm2_context"),
            feed="ff_context",
            head_norms=head_norms,
        ),
    )


def condition_embedders(prefix: str, inputs: Mapping[str, int], width: int, *, bias: bool = True) -> list[Layer]:
    """Return the embedders of time, guidance and pooled text; their last layers have an activation between."""
    layers: list[Layer] = []
    for name, numbers in inputs.items():
        layers += [
            linear(f"{prefix}.{name}.linear_1", numbers, width, bias=bias, chain="condition", stage=0),
            linear(f"{prefix}.{name}.linear_2", width, width, bias=bias, chain="condition", stage=1),
        ]
    return layers


def last_layers(width: int, channels: int, *, rows: int, stage: int, bias: bool = True) -> list[Layer]:
    """Return what makes `channels` numbers of every token after the blocks."""
    return [
        modulation("norm_out.linear", width, parts=2, rows=rows, block=-1, products=1, bias=bias),
        layer_norm("norm_out.norm", width, rows=rows, block=-1, stage=stage),
        linear("proj_out", width, channels, rows=rows, bias=bias, stage=stage),
    ]


def modulation(
    name: str, width: int, *, parts: int, rows: int, block: int, products: int, bias: bool = True, inputs: int = 0
) -> Layer:
    """Return the layer that makes shifts, scales and gates; each scale and gate multiplies `rows` tokens.

    It takes a vector of `width` numbers, or of `inputs`.
    """
    return linear(
        name,
        inputs or width,
        parts * width,
        bias=bias,
        chain="condition",
        block=block,
        stage=2,
        source="condition",
        keeps_if_trained=Kept(plain=products * rows * width),
    )


def products(width: int, *, rows: int, block: int, plain: int, wide: int = 0, parameters: int = 0) -> Layer:
    """Return what scales and gates from before the blocks multiply in one: `plain` and `wide` tensors of all tokens."""
    return Layer(
        name="scale_shift_table",
        parameters=parameters,
        chain="condition",
        block=block,
        stage=3,
        keeps=Kept(plain=plain * rows * width, wide=wide * rows * width),
    )


def layer_norm(
    name: str, width: int, *, rows: int, block: int, stage: int, affine: bool = False, chain: Chain = "tokens"
) -> Layer:
    """Return a layer norm, with or without weights."""
    return Layer(
        name=name,
        parameters=2 * width if affine else 0,
        block=block,
        stage=stage,
        chain=chain,
        keeps=Kept(wide=rows * (width + 2)),
    )


def activation(name: str, width: int, *, rows: int, block: int, stage: int, chain: Chain = "tokens") -> Layer:
    """Return an activation that keeps its input."""
    return Layer(name=name, block=block, stage=stage, chain=chain, keeps=Kept(plain=rows * width))


def gated_activation(name: str, width: int, *, rows: int, block: int, stage: int, chain: Chain = "tokens") -> Layer:
    """Return an activation that multiplies another tensor: it keeps both and its input."""
    return activation(name, 3 * width, rows=rows, block=block, stage=stage, chain=chain)


def head_norm(name: str, heads: Heads, *, rows: int, block: int, stage: int, chain: Chain = "tokens") -> Layer:
    """Return the RMS norm of queries or keys, with one weight per channel of a head."""
    return Layer(
        name=name,
        parameters=heads.size,
        block=block,
        stage=stage,
        chain=chain,
        keeps=Kept(wide=rows * heads.count * (heads.size + 1)),
        keeps_if_trained=Kept(wide=rows * heads.width),
    )


def rms_norm(name: str, width: int, *, rows: int, block: int, stage: int, chain: Chain = "tokens") -> Layer:
    """Return the RMS norm of whole tokens."""
    return head_norm(name, Heads(1, width), rows=rows, block=block, stage=stage, chain=chain)


def joint_attention(heads: Heads, *, rows: int, block: int, stage: int) -> Layer:
    """Return the attention of all tokens with each other."""
    return attention("attn", heads=heads.count, head_width=heads.size, rows=rows, block=block, stage=stage)


def feed_forward(
    name: str, width: int, *, rows: int, block: int, stage: int, hidden: int = 0, chain: Chain = "tokens"
) -> list[Layer]:
    """Return two layers with an activation between, `hidden` channels wide, or four times as wide as the tokens."""
    hidden = hidden or 4 * width
    return [
        linear(f"{name}.net.0.proj", width, hidden, rows=rows, chain=chain, block=block, stage=stage),
        activation(f"{name}.net.0", hidden, rows=rows, chain=chain, block=block, stage=stage + 1),
        linear(f"{name}.net.2", hidden, width, rows=rows, chain=chain, block=block, stage=stage + 1),
    ]


def two_stream_block(
    heads: Heads, streams: Sequence[Stream], *, block: int, stage: int, feed: FeedForward = feed_forward
) -> list[Layer]:
    """Return a block with weights of their own for each stream, which meet in the attention. It takes four stages."""
    before: list[Layer] = []
    after: list[Layer] = []
    for stream in streams:
        before += _before_attention(heads, stream, block=block, stage=stage)
        after += _after_attention(heads.width, stream, block=block, stage=stage + 1, feed=feed)
    rows = sum(stream.rows for stream in streams)
    return [*before, joint_attention(heads, rows=rows, block=block, stage=stage + 1), *after]


def _before_attention(heads: Heads, stream: Stream, *, block: int, stage: int) -> list[Layer]:
    width, rows, norm = heads.width, stream.rows, stream.norms[0]
    made = (
        modulation(stream.modulation, width, parts=stream.parts, rows=rows, block=block, products=stream.products)
        if stream.modulation
        else products(width, rows=rows, block=block, plain=stream.products)
    )
    layers = [made, layer_norm(norm, width, rows=rows, block=block, stage=stage, chain=stream.chain)]
    for name in stream.projections:
        layer = linear(f"attn.{name}", width, width, rows=rows, bias=stream.bias, block=block, stage=stage, source=norm)
        layers.append(replace(layer, chain=stream.chain))
    for name in stream.head_norms:
        layers.append(head_norm(f"attn.{name}", heads, rows=rows, block=block, stage=stage + 1, chain=stream.chain))
    return layers


def _after_attention(width: int, stream: Stream, *, block: int, stage: int, feed: FeedForward) -> list[Layer]:
    layers: list[Layer] = []
    if stream.out:
        out = linear(f"attn.{stream.out}", width, width, rows=stream.rows, bias=stream.bias, block=block, stage=stage)
        layers.append(out)
    if stream.feed:
        layers.append(layer_norm(stream.norms[1], width, rows=stream.rows, block=block, stage=stage + 1))
        layers += feed(stream.feed, width, rows=stream.rows, block=block, stage=stage + 1)
    return layers


def one_stream_block(heads: Heads, *, rows: int, block: int, stage: int, parts_again: bool = False) -> list[Layer]:
    """Return a block that takes all tokens alike, its feed-forward layer beside its attention. It takes three stages.

    `parts_again`: what goes into the attention is parted and put together again, so that it is a copy.
    """
    width = heads.width
    projections = {"proj_mlp": 4 * width, "attn.to_q": width, "attn.to_k": width, "attn.to_v": width}
    return [
        # kept for the conditioning's gradient: the normed input (scale) and the output (gate)
        modulation("norm.linear", width, parts=3, rows=rows, block=block, products=2),
        layer_norm("norm.norm", width, rows=rows, block=block, stage=stage),
        *(
            linear(
                name,
                width,
                outputs,
                rows=rows,
                block=block,
                stage=stage,
                source="parted" if parts_again and name != "proj_mlp" else "norm",
            )
            for name, outputs in projections.items()
        ),
        activation("act_mlp", 4 * width, rows=rows, block=block, stage=stage + 1),
        *(head_norm(f"attn.{name}", heads, rows=rows, block=block, stage=stage + 1) for name in ("norm_q", "norm_k")),
        joint_attention(heads, rows=rows, block=block, stage=stage + 1),
        linear("proj_out", 5 * width, width, rows=rows, block=block, stage=stage + 2),
    ]


def unread_after_attention(layers: Sequence[Layer], stream: Stream) -> list[Layer]:
    """Return the layers of a block, those of `stream` after the attention marked as read by nothing."""
    last = (f"attn.{stream.out}", stream.norms[1], f"{stream.feed}.")
    return [replace(layer, unread=layer.name.startswith(last)) for layer in layers]
