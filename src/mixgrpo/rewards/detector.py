"""Finds the objects in pictures with Mask2Former, and names their colours with CLIP, as GenEval does.

GenEval's detector is a Mask2Former with a Swin-S backbone for COCO's 80 classes; its thresholds belong to it, and its
masks are what colours are judged on. transformers has the same network with the weights of its authors, and runs it
without torchvision and timm. (Of its other detectors, DETR's published weights need timm, and RT-DETR and OWLv2 give no
masks and scores on another scale.)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPModel,
    Mask2FormerForUniversalSegmentation,
)

from mixgrpo.rewards.pixels import Preparation
from mixgrpo.rewards.placement import Placement
from mixgrpo.rewards.scene import COLORS, Box, Detection
from mixgrpo.rewards.sources import Source

_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "hair dryer": "hair drier",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "mouse": "computer mouse",
    "pottedplant": "potted plant",
    "remote": "tv remote",
    "sofa": "couch",
    "television": "tv",
    "tvmonitor": "tv",
}
"""What lists of COCO's classes call a thing, and what GenEval does."""

_BEHIND = (0x99, 0x99, 0x99)  # the grey that GenEval puts around an object before its colour is judged

_PHRASES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")


class Found(NamedTuple):
    """One object in a picture."""

    detection: Detection
    mask: Tensor
    """Where it is, bool [H, W]."""


class Mask2FormerDetector:
    """Finds objects of the classes that its weights know."""

    def __init__(self, source: Source, placement: Placement) -> None:
        """Load the network and its preprocessing.

        Raises:
            ConfigError: A file is missing, or it is another network.
        """
        # not exact: published files of Swin hold indices too, which the network makes itself
        model: Any = source.load_model(Mask2FormerForUniversalSegmentation, exact=False)
        self._model = model.to(placement.resting_place)
        self._processor: Any = source.load(AutoImageProcessor)
        self._labels = {i: geneval_name(name) for i, name in self._model.config.id2label.items()}
        self._placement = placement

    @property
    def labels(self) -> frozenset[str]:
        """The classes that it knows, by GenEval's names."""
        return frozenset(self._labels.values())

    def __call__(self, pictures: Sequence[Image.Image], *, threshold: float) -> list[list[Found]]:
        """Return the objects of every picture with a score of `threshold` or more; all pictures have one size.

        An object's score is its class's probability times the mean probability of its mask, as in the original.
        """
        inputs = self._processor(images=list(pictures), return_tensors="pt").to(self._placement.torch_device)
        with self._placement.at_work(self._model):
            outputs = self._model(**inputs)
        results = self._processor.post_process_instance_segmentation(
            outputs,
            threshold=threshold,
            target_sizes=[picture.size[::-1] for picture in pictures],
            return_binary_maps=True,
        )
        return [self._objects(result["segments_info"], result["segmentation"]) for result in results]

    def _objects(self, segments: Sequence[dict[str, Any]], masks: Tensor) -> list[Found]:
        """Pair the segments with their masks; without segments, what stands for the masks is no mask."""
        found: list[Found] = []
        for segment, mask in zip(segments, masks.cpu() > 0 if segments else (), strict=True):
            label = self._labels[segment["label_id"]]
            found.append(Found(Detection(label, segment["score"], box_around(mask)), mask))
        return found


class ColorNamer:
    """Names the colour of an object, by which of GenEval's phrases CLIP finds nearest to it."""

    def __init__(self, source: Source, placement: Placement) -> None:
        """Load CLIP and its tokenizer.

        Raises:
            ConfigError: A file is missing, or it is another network.
        """
        self._model: Any = source.load_model(CLIPModel).to(placement.resting_place)
        self._tokenizer: Any = source.load(AutoTokenizer)
        self._prepare = Preparation(size=self._model.config.vision_config.image_size, fit="crop_even")
        self._placement = placement
        self._known: dict[str, Tensor] = {}

    def __call__(self, crops: Sequence[Image.Image], label: str) -> list[str]:
        """Return the colour of every crop, which shows an object of the class `label`."""
        if not crops:
            return []
        pixels = self._prepare.of_pictures(crops).to(self._placement.torch_device)
        with self._placement.at_work(self._model):
            seen = self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)
            nearest = (seen @ self._directions(label).T).argmax(dim=1)
        return [COLORS[i] for i in nearest.tolist()]

    def _directions(self, label: str) -> Tensor:
        """Return CLIP's direction of every colour for a class, [colours, dimensions], of length 1.

        It is the mean over the phrases of their directions, made length 1 again.
        """
        if label not in self._known:
            texts = [phrase.format(color=color, label=label) for color in COLORS for phrase in _PHRASES]
            tokens = self._tokenizer(texts, padding=True, return_tensors="pt").to(self._placement.torch_device)
            read = self._model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            unit = torch.nn.functional.normalize(self._model.text_projection(read.pooler_output), dim=-1)
            mean = torch.stack([phrases.mean(0) for phrases in unit.split(len(_PHRASES))])
            self._known[label] = torch.nn.functional.normalize(mean, dim=-1)
        return self._known[label]


def geneval_name(name: str) -> str:
    """Return what GenEval calls one of COCO's classes; names that it does not know stay."""
    return _NAMES.get(name.lower(), name.lower())


def box_around(mask: Tensor) -> Box:
    """Return the smallest box around the true pixels of a mask [H, W], of which there is at least one."""
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    return Box(columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1)


def cut_out(picture: Image.Image, found: Found) -> Image.Image:
    """Return the box of an object, with grey where the object is not."""
    mask = Image.fromarray(found.mask.numpy())
    alone = Image.composite(picture, Image.new("RGB", picture.size, _BEHIND), mask)
    box = found.detection.box
    return alone.crop((round(box.left), round(box.top), round(box.right), round(box.bottom)))
