"""LAION's aesthetic predictor: how beautiful people find a picture, whatever the prompt says.

A small head on the vector, of length 1, that OpenAI's CLIP ViT-L/14 gives a picture: five linear layers with dropout
and nothing else between them, so one linear function, here in float32. It was trained on ratings from 1 to 10; what it
says is not clipped. Source and weights: https://github.com/christophschuhmann/improved-aesthetic-predictor, Apache-2.0.
Licence of OpenAI's CLIP: the code is MIT, its model card leaves any deployed use out of scope.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel

from mixgrpo.errors import ConfigError
from mixgrpo.rewards.base import mask_unscorable
from mixgrpo.rewards.clip import ClipEncoder
from mixgrpo.rewards.pixels import Preparation
from mixgrpo.rewards.placement import Placement
from mixgrpo.rewards.sources import CONFIG, WEIGHTS, Source

MODEL = "openai/clip-vit-large-patch14"
HEAD = "sac+logos+ava1-l14-linearMSE.pth"
_HEAD_URL = f"https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/{HEAD}"
_WIDTHS = (1024, 128, 64, 16, 1)
_LAYERS = (0, 2, 4, 6, 7)  # places of the linear layers: the others are dropouts, which do nothing here


def sources(*, path: str = MODEL, head: str = HEAD, **_: Any) -> tuple[Source, ...]:
    """Return where the reward with such options has its files, and loads nothing."""
    fetch, model = f"curl -L --create-dirs -o FOLDER/{HEAD} {_HEAD_URL}", f"{MODEL} config.json model.safetensors"
    return (
        Source("aesthetic", "head", head, fetch, ((HEAD,),)),
        Source.of_hub("aesthetic", "path", path, published=model, files=(CONFIG, WEIGHTS)),
    )


class AestheticReward:
    """The rating of a picture, divided by what one likes."""

    name = "aesthetic"

    def __init__(self, path: str, head: str, *, divide_by: float = 1.0, placement: Placement) -> None:
        """Load OpenAI's CLIP ViT-L/14 from `path` and the head from `head`.

        `path` is a folder or hub id in the form of transformers, `head` the file itself or a folder that has it.
        `divide_by` 10 brings the ratings to [0.1, 1].

        Raises:
            ConfigError: Files are missing, out of reach, or of other models, or `divide_by` is not positive.
        """
        if not divide_by > 0:
            raise ConfigError(f"the aesthetic reward's divide_by must be above 0, got {divide_by}")
        ratings, source = sources(path=path, head=head)
        self._head = _load_head(ratings)
        model = source.load_model(CLIPModel)
        config: Any = model.config
        takes, gives = self._head[0].in_features, config.projection_dim
        if takes != gives:
            raise ConfigError(
                f"the aesthetic reward: options.head takes vectors of {takes} numbers, but the CLIP model of "
                f"options.path {path!r} gives {gives}. The published head belongs to {MODEL}"
            )
        # OpenAI's own loader, as in LAION's code; that of transformers differs by a pixel for some sizes
        prepare = Preparation(size=config.vision_config.image_size, fit="crop_even")
        self._encoder = ClipEncoder(model, prepare, placement)
        self._divide_by = divide_by

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images [B, 3, H, W] in [0, 1], whatever the prompts: [B]."""
        ratings = self._head(self._encoder.embed_images(images)).squeeze(-1)
        return mask_unscorable(ratings / self._divide_by, images)


def _load_head(source: Source) -> nn.Sequential:
    """Return the linear layers, in float32 on the CPU, every weight of the file in its place."""
    file = source.require(HEAD)
    weights = source.read_weights(file)
    names = {f"layers.{old}.{kind}": f"{new}.{kind}" for new, old in enumerate(_LAYERS) for kind in ("weight", "bias")}
    first = weights.get("layers.0.weight")
    widths = (first.shape[-1] if first is not None else 0, *_WIDTHS)
    shapes = [shape for wide, thin in pairwise(widths) for shape in ((thin, wide), (thin,))]
    if {name: tuple(tensor.shape) for name, tensor in weights.items()} != dict(zip(names, shapes, strict=True)):
        raise source.error(
            f"{file} is not LAION's predictor, whose weights are {', '.join(names)} for layers "
            f"{' - '.join(map(str, _WIDTHS))} wide"
        )
    head = nn.Sequential(*(nn.Linear(wide, thin) for wide, thin in pairwise(widths)))
    head.load_state_dict({names[name]: tensor.float() for name, tensor in weights.items()})
    return head.requires_grad_(False).eval()
