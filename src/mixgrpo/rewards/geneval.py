"""Whether a picture holds the objects that its prompt asks for, by GenEval's rules (https://arxiv.org/abs/2310.11513).

What is asked comes with the prompt, in the columns `tag`, `include` and `exclude` of its line: see `scene.read_scene`.
`detector` finds objects and colours, `scene` judges them.

Weights: facebook/mask2former-swin-small-coco-instance (its authors' repository is under the MIT licence, the hub's
card says "other"; the licence of the weights was not verified) and openai/clip-vit-large-patch14 for the colours (its
authors' repository is under the MIT licence; the licence of the weights was not verified). GenEval has the same CLIP,
but mmdetection's weights of the same detector, so scores need not equal published ones.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mixgrpo.errors import ConfigError, RewardError
from mixgrpo.rewards.base import Scores, mask_unscorable
from mixgrpo.rewards.detector import ColorNamer, Found, Mask2FormerDetector, cut_out
from mixgrpo.rewards.pixels import as_pictures
from mixgrpo.rewards.placement import Placement
from mixgrpo.rewards.scene import Detection, Scene, Verdict, judge, read_scene, select
from mixgrpo.rewards.sources import CONFIG, TOKENIZER, TOKENIZER_FILES, WEIGHTS, Source

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"


def sources(*, path: str = DETECTOR, clip: str = CLIP, **_: Any) -> tuple[Source, ...]:
    """Return where the reward with such options has its files, and loads nothing."""
    beside = "preprocessor_config.json"
    detector, namer = (
        f"{DETECTOR} config.json {beside} model.safetensors",
        f"{CLIP} {TOKENIZER_FILES} model.safetensors",
    )
    return (
        Source.of_hub("geneval", "path", path, published=detector, files=(CONFIG, (beside,), WEIGHTS)),
        Source.of_hub("geneval", "clip", clip, published=namer, files=(CONFIG, WEIGHTS, TOKENIZER)),
    )


class GenEvalReward:
    """Looks for what a prompt's columns ask for."""

    name = "geneval"

    def __init__(
        self,
        *,
        path: str = DETECTOR,
        clip: str = CLIP,
        partial: bool = False,
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        max_objects: int = 16,
        max_overlap: float = 1.0,
        position_margin: float = 0.1,
        device: str = "auto",
        batch_size: int = 8,
        offload: bool = False,
    ) -> None:
        """Load the detector from `path` and CLIP from `clip`, each a folder or a hub id.

        The score is GenEval's verdict, 0 or 1; with `partial` it is Flow-GRPO's partial one. Objects count from a
        confidence above `threshold`, for prompts with the tag "counting" above `counting_threshold`, `max_objects` of a
        class at most; `max_overlap` below 1 drops those that overlap a surer one of their class by so much.
        `position_margin` is the part of the objects' sides that does not count as a distance. The numbers are
        GenEval's.

        Raises:
            ConfigError: A number is out of its range, or the device is none; or a file is missing, or does not fit,
                and the message says what to download.
        """
        placement = Placement(device=device, batch_size=batch_size, offload=offload)
        for option, figure in (("threshold", threshold), ("counting_threshold", counting_threshold)):
            if not 0 <= figure < 1:
                raise ConfigError(f"the geneval reward's {option} must be from 0 to below 1, got {figure}")
        if max_objects < 1 or not 0 < max_overlap <= 1 or position_margin < 0:
            raise ConfigError(
                f"the geneval reward needs max_objects of at least 1, max_overlap above 0 and up to 1, and "
                f"position_margin of at least 0, got {max_objects}, {max_overlap} and {position_margin}"
            )
        detector, namer = sources(path=path, clip=clip)
        self._detector, self._namer = Mask2FormerDetector(detector, placement), ColorNamer(namer, placement)
        self._partial = partial
        self._thresholds = {"counting": counting_threshold}
        self._threshold = threshold
        self._max_objects, self._max_overlap = max_objects, max_overlap
        self._position_margin = position_margin
        self._batch_size = batch_size

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Score images [B, 3, H, W] in [0, 1] against the columns of their prompts: values and details, [B].

        The details are the fields of `scene.Verdict`, and `tag_<tag>` of the tags that are among the prompts: GenEval's
        verdict for those with the tag, NaN for the others. GenEval's overall score is the mean of its six tags' means.

        Raises:
            RewardError: A prompt has no columns in GenEval's format, or asks for a class unknown to the detector.
        """
        scenes = [self._read(prompt) for prompt in prompts]
        verdicts: list[Verdict] = []
        for start in range(0, len(scenes), self._batch_size):
            part = slice(start, start + self._batch_size)
            verdicts += self._judge(as_pictures(images[part]), scenes[part])
        figures = _columns(verdicts)
        for tag in sorted({scene.tag for scene in scenes} - {""}):
            has_tag = torch.tensor([scene.tag == tag for scene in scenes])
            figures[f"tag_{tag}"] = figures["correct"].where(has_tag, float("nan"))
        details = {key: mask_unscorable(column, images) for key, column in figures.items()}
        return Scores(details["partial" if self._partial else "correct"], details)

    def _judge(self, pictures: list[Image.Image], scenes: Sequence[Scene]) -> list[Verdict]:
        lowest = min(self._confidence(scene) for scene in scenes)
        return [
            judge(scene, self._look(picture, found, scene), margin=self._position_margin)
            for picture, found, scene in zip(pictures, self._detector(pictures, threshold=lowest), scenes, strict=True)
        ]

    def _look(self, picture: Image.Image, found: Sequence[Found], scene: Scene) -> dict[str, list[Detection]]:
        """Return the objects that count, by class, with colours where the scene asks for them."""
        whole = {id(thing.detection): thing for thing in found}
        objects = select(
            [thing.detection for thing in found if thing.detection.label in scene.labels],
            threshold=self._confidence(scene),
            max_objects=self._max_objects,
            max_overlap=self._max_overlap,
        )
        for label, count in scene.colored().items():
            surest = objects.get(label, [])[:count]
            crops = [cut_out(picture, whole[id(detection)]) for detection in surest]
            colors = self._namer(crops, label)
            named = [detection._replace(color=color) for detection, color in zip(surest, colors, strict=True)]
            objects[label] = [*named, *objects.get(label, [])[count:]]
        return objects

    def _read(self, prompt: str) -> Scene:
        scene = read_scene(prompt)
        if unknown := sorted(scene.labels - self._detector.labels):
            close = get_close_matches(unknown[0], self._detector.labels, n=3)
            hint = f" Near are: {', '.join(close)}." if close else ""
            raise RewardError(
                f"the prompt {str(prompt)!r} asks for the class {unknown[0]!r}, which the geneval reward's detector "
                f"does not know.{hint} It knows {len(self._detector.labels)} classes, for instance "
                f"{', '.join(sorted(self._detector.labels)[:5])}"
            )
        return scene

    def _confidence(self, scene: Scene) -> float:
        return self._thresholds.get(scene.tag, self._threshold)


def _columns(verdicts: Sequence[Verdict]) -> dict[str, Tensor]:
    """Return the fields of all verdicts, [B] each."""
    rows = [asdict(verdict) for verdict in verdicts]
    return {field.name: torch.tensor([row[field.name] for row in rows]) for field in fields(Verdict)}
