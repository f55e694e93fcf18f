"""Stage two: the text encoders, trained to say which letter stands where.

FLUX gives text tokens no positions and T5 only relative ones, so an encoder that starts from scratch beside the
transformer leaves the order of the letters open, and the model draws crisp wrong words. Two minutes of learning to name
letter and place at every byte of the prompt mend that. The heads that name them are thrown away.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ByT5Tokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

from mixgrpo.nano.data import Picture, make_caption, make_pictures, make_rng
from mixgrpo.nano.render import LETTERS
from mixgrpo.nano.stage import Metrics, Stage, StageSettings
from mixgrpo.nano.words import MAX_LETTERS
from mixgrpo.rewards.palette import PALETTE

PROMPT_BYTES = 48
"""Bytes of a prompt that the T5 encoder sees: `max_sequence_length` of the pipeline."""
T5_WIDTH = 128
CLIP_WIDTH = 64
CLIP_LENGTH = 77

TEXT_SETTINGS = StageSettings(num_steps=500, schedule_steps=2000, batch_size=64, learning_rate=2e-3, probe_every=250)
"""Every letter and place is named right after a quarter of the schedule, so that is where it stops."""
PROBE_SIZE = 512


def make_t5() -> T5EncoderModel:
    """Return the untrained byte encoder, 0.5 M parameters."""
    config = T5Config(
        vocab_size=384,
        d_model=T5_WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=3,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        use_cache=False,
        is_encoder_decoder=False,
    )
    return T5EncoderModel(config)


def make_clip() -> CLIPTextModel:
    """Return the untrained one-layer encoder whose pooled output sets the picture's colours."""
    config = CLIPTextConfig(
        vocab_size=len(clip_vocabulary()),
        hidden_size=CLIP_WIDTH,
        intermediate_size=4 * CLIP_WIDTH,
        projection_dim=CLIP_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=clip_vocabulary()["<|startoftext|>"],
        eos_token_id=clip_vocabulary()["<|endoftext|>"],
        pad_token_id=clip_vocabulary()["<|endoftext|>"],
    )
    return CLIPTextModel(config)


def clip_vocabulary() -> dict[str, int]:
    """Return CLIP's byte-level vocabulary without merges: every byte, alone and at the end of a word."""
    alphabet = sorted(ByteLevel.alphabet())
    entries = [*alphabet, *(symbol + "</w>" for symbol in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return {entry: index for index, entry in enumerate(entries)}


def save_tokenizers(output: Path) -> None:
    """Write `tokenizer` (CLIP) and `tokenizer_2` (ByT5) as the pipeline expects them."""
    folder = output / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(clip_vocabulary(), ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    CLIPTokenizer(clip_vocabulary(), [], model_max_length=CLIP_LENGTH).save_pretrained(folder)
    ByT5Tokenizer(model_max_length=PROMPT_BYTES).save_pretrained(output / "tokenizer_2")


class PromptEncoder(nn.Module):
    """Both text encoders with their tokenizers, called exactly as `FluxPipeline` calls them: padded, without masks."""

    def __init__(self) -> None:
        super().__init__()
        self.t5 = make_t5()
        self.clip = make_clip()
        self.t5_tokenizer = ByT5Tokenizer(model_max_length=PROMPT_BYTES)
        self.clip_tokenizer = CLIPTokenizer(clip_vocabulary(), [], model_max_length=CLIP_LENGTH)

    def forward(self, prompts: list[str], t5: Callable[..., Any] | None = None) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the bytes, [batch, 48, 128], and the pooled ones, [batch, 64].

        `t5` is a compiled form of the byte encoder, if there is one.
        """
        padding = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        byte_ids = self.t5_tokenizer(prompts, max_length=PROMPT_BYTES, **padding).input_ids
        clip_ids = self.clip_tokenizer(prompts, max_length=CLIP_LENGTH, **padding).input_ids
        return (self.t5 if t5 is None else t5)(byte_ids)[0], self.clip(clip_ids).pooler_output


class PlaceHeads(nn.Module):
    """Linear heads that name letter and place at every byte, and ink and ground from the pooled embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.letter = nn.Linear(T5_WIDTH, len(LETTERS) + 1)
        self.place = nn.Linear(T5_WIDTH, MAX_LETTERS + 1)
        self.place_from_end = nn.Linear(T5_WIDTH, MAX_LETTERS + 1)
        self.ink = nn.Linear(CLIP_WIDTH, len(PALETTE))
        self.ground = nn.Linear(CLIP_WIDTH, len(PALETTE))


def place_targets(words: list[str], start: int) -> dict[str, Tensor]:
    """Return the class of every byte, [batch, 48] each: 0 outside the word, which begins at byte `start`."""
    shape = (len(words), PROMPT_BYTES)
    targets = {name: torch.zeros(shape, dtype=torch.long) for name in ("letter", "place", "place_from_end")}
    for row, word in enumerate(words):
        for place, letter in enumerate(word):
            targets["letter"][row, start + place] = LETTERS.index(letter) + 1
            targets["place"][row, start + place] = place + 1
            targets["place_from_end"][row, start + place] = len(word) - place
    return targets


def _logits_and_targets(
    encoder: PromptEncoder, heads: PlaceHeads, pictures: list[Picture], captions: list[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    embeddings, pooled = encoder(captions)
    colors = list(PALETTE)
    targets = place_targets([picture.word for picture in pictures], captions[0].index('"') + 1)
    targets["ink"] = torch.tensor([colors.index(picture.look.ink) for picture in pictures])
    targets["ground"] = torch.tensor([colors.index(picture.look.ground) for picture in pictures])
    logits = {
        "letter": heads.letter(embeddings),
        "place": heads.place(embeddings),
        "place_from_end": heads.place_from_end(embeddings),
        "ink": heads.ink(pooled),
        "ground": heads.ground(pooled),
    }
    return {name: (logits[name].flatten(0, -2), targets[name].flatten()) for name in logits}


def make_text_stage(output: Path, seed: int, settings: StageSettings = TEXT_SETTINGS) -> Stage:
    """Return the stage that trains both text encoders with their heads."""
    torch.manual_seed(seed + 1)
    encoder, heads = PromptEncoder(), PlaceHeads()

    def loss(draw: int, size: int) -> Tensor:
        rng = make_rng(seed, "text", draw)
        pictures = make_pictures(rng, size)
        captions = [make_caption(picture, rng) for picture in pictures]
        pairs = _logits_and_targets(encoder, heads, pictures, captions).values()
        return torch.stack([cross_entropy(logits, target) for logits, target in pairs]).sum()

    def probe() -> Metrics:
        rng = make_rng(seed, "probe", 2)
        pictures = make_pictures(rng, PROBE_SIZE)
        captions = [make_caption(picture, rng) for picture in pictures]
        pairs = _logits_and_targets(encoder, heads, pictures, captions)
        return {name: (logits.argmax(-1) == target).float().mean().item() for name, (logits, target) in pairs.items()}

    def export() -> None:
        save_tokenizers(output)
        encoder.clip.save_pretrained(output / "text_encoder")
        encoder.t5.save_pretrained(output / "text_encoder_2")

    modules = nn.ModuleDict({"encoder": encoder, "heads": heads})
    return Stage(name="text", settings=settings, modules=modules, loss=loss, probe=probe, export=export)
