"""Loads models, and encodes prompts ahead. Torch and diffusers are imported late, after what answers at once."""

import json
from collections.abc import Callable, Sequence
from functools import cache as once
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixgrpo.errors import ConfigError, MissingExtraError, ModelError
from mixgrpo.models.base import FlowModel
from mixgrpo.models.registry import find_model, read_index

if TYPE_CHECKING:
    from mixgrpo.models.pipeline import PipelineModel, Row
    from mixgrpo.models.prompt_cache import PromptCache


def load_model(
    path_or_hub_id: str,
    *,
    height: int,
    width: int,
    num_frames: int = 1,
    guidance_scale: float = 3.5,
    guidance_scale_2: float = 0.0,
    negative_prompt: str = "",
    max_sequence_length: int = 512,
    dtype: str = "float32",
    autocast: str = "off",
    attention: str = "native",
    gradient_checkpointing: bool = False,
    device: str = "auto",
    revision: str = "",
    prompt_cache: str | Path = "",
    quantize: str = "off",
    vae_decoding: str = "whole",
    offload: bool = False,
) -> FlowModel:
    """Load a bundled model by name, a diffusers folder, or a hub id, and freeze it.

    Weights are read from safetensors only, and no remote code is run. With a `prompt_cache`, a folder that
    `cache_prompts` has filled, the text encoders are not loaded.

    Raises:
        ModelError: if there is no such model, it is of an unknown family, or its files cannot be read.
        ConfigError: if the image size or another option does not fit the model.
    """
    folder, adapter = find_model(path_or_hub_id, revision)
    import torch  # noqa: PLC0415 - what is above answers at once

    from mixgrpo.models.options import ModelOptions  # noqa: PLC0415

    device = _device(device)
    parts = part_configs(folder)
    check_size(height, width, adapter.side_multiple(parts))
    check_frames(num_frames, adapter.frame_multiple(parts))
    absent = adapter.text_encoders if prompt_cache else ()
    pipeline = _load(folder, dtype, absent, in_float32=adapter.float32_parts, quantize=quantize)
    options = ModelOptions(
        height=height,
        width=width,
        num_frames=num_frames,
        guidance_scale=guidance_scale,
        guidance_scale_2=guidance_scale_2,
        negative_prompt=negative_prompt,
        max_sequence_length=max_sequence_length,
        autocast=None if autocast == "off" else getattr(torch, autocast),
    )
    _place(pipeline, device, resting=("vae", *adapter.text_encoders) if offload else ())
    model = adapter(pipeline, options)
    model.source = folder
    if prompt_cache:
        model.prompt_cache = _open_cache(folder, adapter, prompt_cache, dtype, max_sequence_length)
    _set_up_vae(pipeline.vae, vae_decoding)
    _set_up(model, attention=attention, gradient_checkpointing=gradient_checkpointing, offload=offload)
    return model


def _place(pipeline: Any, device: str, *, resting: Sequence[str]) -> None:
    """Move a pipeline to the device, except for its parts `resting`, which may not fit there beside the transformer."""
    if not resting:
        pipeline.to(device)
        return
    for name, part in pipeline.components.items():
        if hasattr(part, "parameters") and name not in resting:
            part.to(device)


def _set_up_vae(vae: Any, decoding: str) -> None:
    if decoding != "whole":
        vae.enable_slicing()
    if decoding == "tiled":
        vae.enable_tiling()


def _set_up(model: "PipelineModel", *, attention: str, gradient_checkpointing: bool, offload: bool) -> None:
    if model.options.guidance_scale_2 and not model.has_two_stages:
        raise ConfigError("model.guidance_scale_2 is for a second transformer, which this model lacks; leave it at 0")
    if offload:
        model.offload()
    transformer: Any = model.transformer
    if attention != "native":
        from mixgrpo.models.attention import choose_attention  # noqa: PLC0415 - loads diffusers

        choose_attention(transformer, attention, autocast=model.options.autocast)
    if gradient_checkpointing:
        transformer.enable_gradient_checkpointing()


def cache_prompts(
    path_or_hub_id: str,
    prompts: Sequence[str],
    *,
    folder: str | Path,
    max_sequence_length: int = 512,
    dtype: str = "float32",
    device: str = "auto",
    revision: str = "",
    batch: int = 16,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Encode those of `prompts` that the cache in `folder` lacks, and return how many this process encoded.

    Processes that do so at the same time, on any machines that share the folder, divide the work, and each returns when
    all is there. The text encoders are loaded only if there is something to encode, and let go of at the end. What was
    encoded stays if the call is interrupted. `progress` hears what all have done of what was missing.

    Raises:
        ModelError: as `load_model`.
        ConfigError: if files cannot be locked in the folder.
    """
    source, adapter = find_model(path_or_hub_id, revision)
    cache = _open_cache(source, adapter, folder, dtype, max_sequence_length)

    @once
    def load() -> tuple[Any, str]:
        index = read_index(source)
        others = [n for n, kind in index.items() if isinstance(kind, list) and n not in adapter.text_encoders]
        pipeline = _load(
            source, dtype, [name for name in others if "tokenizer" not in name and "processor" not in name]
        )
        where = _device(device)
        pipeline.to(where)
        return pipeline, where

    def encode(some: list[str]) -> "list[Row]":
        import torch  # noqa: PLC0415 - loaded only if needed

        pipeline, where = load()
        with torch.no_grad():
            return adapter.encode_rows(pipeline, some, max_sequence_length=max_sequence_length, device=where)

    return cache.fill(prompts, encode, batch=batch, progress=progress)


def _open_cache(
    source: Path, adapter: "type[PipelineModel]", folder: str | Path, dtype: str, max_sequence_length: int
) -> "PromptCache":
    from mixgrpo.models.prompt_cache import PromptCache, fingerprint  # noqa: PLC0415 - loads torch

    index = read_index(source)
    parts = [*adapter.text_encoders, *(name for name in index if "tokenizer" in name or "processor" in name)]
    identity = fingerprint(source, parts, pipeline=index["_class_name"])
    return PromptCache(Path(folder).expanduser(), f"{identity}-{dtype}", max_sequence_length)


def _load(
    folder: Path, dtype: str, absent: Sequence[str], *, in_float32: Sequence[str] = (), quantize: str = "off"
) -> Any:
    """Load the pipeline in a folder without its parts `absent`; the parts `in_float32` whatever the type."""
    import torch  # noqa: PLC0415 - loaded late, as diffusers is
    from diffusers import DiffusionPipeline  # noqa: PLC0415

    options: dict[str, Any] = dict.fromkeys(absent)
    if quantize != "off":
        options["quantization_config"] = _quantization(quantize)
    dtypes = {"default": getattr(torch, dtype), **dict.fromkeys(in_float32, torch.float32)}
    try:
        _check_libraries(folder, absent)
        return DiffusionPipeline.from_pretrained(folder, dtype=dtypes, use_safetensors=True, **options)
    except (OSError, TypeError, ImportError) as error:
        said = " ".join(str(error).split())
        raise ModelError(f"model {str(folder)!r} cannot be loaded: {said}") from error


def _check_libraries(folder: Path, absent: Sequence[str]) -> None:
    """Find a part that needs a library that is not here, which diffusers only says that it cannot load.

    Raises:
        ImportError: if there is one; transformers' own error, which names the library.
    """
    import transformers  # noqa: PLC0415 - loaded late, as diffusers is
    from transformers.utils import DummyObject  # noqa: PLC0415

    for name, part in read_index(folder).items():
        if isinstance(part, list) and part[0] == "transformers" and name not in absent:
            kind = getattr(transformers, part[1], None)
            if isinstance(kind, DummyObject):
                kind()


def check_quantize(kind: str) -> None:
    """Find out whether weights can be quantised so here.

    Raises:
        MissingExtraError: if the library for it is not installed.
        ConfigError: if this machine cannot do it.
    """
    import torch  # noqa: PLC0415 - loaded late, as diffusers is

    library = {"int8": "torchao", "nf4": "bitsandbytes"}[kind]
    if find_spec(library) is None:
        raise MissingExtraError(f"model.quantize = {kind!r}", library, "quantize")
    if kind == "nf4" and not torch.cuda.is_available():
        raise ConfigError("model.quantize = 'nf4' needs a CUDA device, which torch does not see; int8 needs none")


def _quantization(kind: str) -> Any:
    """Return how diffusers is to quantise the transformer while it loads; raises as `check_quantize`."""
    import torch  # noqa: PLC0415 - loaded late, as diffusers is
    from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig, TorchAoConfig  # noqa: PLC0415

    check_quantize(kind)
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

        how: Any = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return PipelineQuantizationConfig(quant_mapping={"transformer": how, "transformer_2": how})


def part_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the configs of all parts that have one; VAE and transformer say what sides an image can have."""
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*/config.json")}


def check_size(height: int, width: int, multiple: int) -> None:
    """Check the sides of pictures.

    Raises:
        ConfigError: if one is no multiple of what the family's `side_multiple` says.
    """
    for name, value in (("height", height), ("width", width)):
        if value % multiple:
            below = value - value % multiple
            raise ConfigError(
                f"model.{name} ({value}) must be a multiple of {multiple} for this model; "
                f"nearest: {below or multiple} or {below + multiple}"
            )


def check_frames(num_frames: int, multiple: int) -> None:
    """Check the number of frames against what the family's `frame_multiple` says.

    Raises:
        ConfigError: if clips of so many cannot be drawn.
    """
    if multiple == 0 and num_frames != 1:
        raise ConfigError(f"model.num_frames ({num_frames}) must be 1: this model draws images")
    if multiple and (num_frames - 1) % multiple:
        below = num_frames - (num_frames - 1) % multiple
        raise ConfigError(
            f"model.num_frames ({num_frames}) must be 1 more than a multiple of {multiple} for this model; "
            f"nearest: {below} or {below + multiple}"
        )


def _device(device: str) -> str:
    """Return the torch device that a setting means."""
    import torch  # noqa: PLC0415

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"model.device {device!r} is no torch device: use auto, cpu or cuda:0") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"model.device is {device!r}, but torch sees no CUDA device here; use auto or cpu")
    return device
