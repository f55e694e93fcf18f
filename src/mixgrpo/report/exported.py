"""What an exported folder is: its `mixgrpo.json`, and the Python that loads it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mixgrpo.errors import CheckpointError
from mixgrpo.shapes.files import BUNDLED

MARKER = "mixgrpo.json"
"""Says of a folder that we wrote it, and from what."""

_ENCODED = "_embeds"
"""How arguments of a pipeline's call end that take a text as it is encoded."""
_FRAMES_PER_SECOND = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was exported from which run."""

    version: str
    base: str
    """Model that the run started from, as its config names it."""
    run: str
    step: str
    """Name of the checkpoint."""
    is_adapter: bool = False
    """Whether the folder holds an adapter only, to be loaded on top of `base`."""
    pipeline: str = "DiffusionPipeline"
    """Class in diffusers that loads it."""
    dtype: str = "float32"
    float32_parts: Sequence[str] = ()
    """Parts of the pipeline that stay in float32 whatever `dtype` is."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the pipeline's call as held-out images were drawn; a text for one that ends in `_embeds` is to be
    encoded."""
    has_comfyui: bool = False
    second_adapter: str = ""
    """File, in a folder beside the adapter's own, for the second of two transformers."""
    no_comfyui: str = ""
    """Why there is no file for ComfyUI beside an adapter."""

    @property
    def iteration(self) -> int:
        """Iterations that the weights were trained for."""
        return int(self.step.rpartition("-")[2])

    @property
    def is_video(self) -> bool:
        """Whether it draws clips."""
        return self.call.get("num_frames", 1) > 1

    @property
    def draws_frames(self) -> bool:
        """Whether its pipeline is one of clips, of one frame or more."""
        return "num_frames" in self.call


def write_marker(exported: Exported, folder: Path) -> None:
    """Write what `read_exported` reads."""
    (folder / MARKER).write_text(json.dumps(asdict(exported), indent=1) + "\n", encoding="utf-8")


def read_exported(folder: Path) -> Exported | None:
    """Return what the folder says of itself, or None if it is no export.

    Raises:
        CheckpointError: if its `mixgrpo.json` is damaged.
    """
    file = folder / MARKER
    if not file.is_file():
        return None
    known = {each.name for each in fields(Exported)}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Exported(**{name: value for name, value in values.items() if name in known})
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; export the run again") from error


def loading_code(exported: Exported, where: str, *, prompt: str = "a prompt", base: str = "") -> list[str]:
    """Return the lines of Python that load an export and draw with it.

    Args:
        exported: what the export says of itself.
        where: its folder, or its id on the hub.
        prompt: what is drawn.
        base: what the base model is called there, if not as in the config.
    """
    source, imports = _quoted(where), ["import torch", f"from diffusers import {exported.pipeline}"]
    if exported.is_adapter:
        source = _quoted(base or exported.base)
        if exported.base in BUNDLED:
            source = f"bundled_folder({_quoted(exported.base)})"
            imports.append("from mixgrpo.models import bundled_folder")
    if exported.is_video:
        imports.append("from diffusers.utils import export_to_video")
    lines = [*imports, "", f"pipe = {exported.pipeline}.from_pretrained({source}{_dtype(exported)})"]
    if exported.is_adapter:
        lines.append(f"pipe.load_lora_weights({_quoted(where)})")
        if exported.second_adapter:
            second = f"weight_name={_quoted(exported.second_adapter)}, load_into_transformer_2=True"
            lines.append(f"pipe.load_lora_weights({_quoted(where)}, {second})")
    lines.append('pipe.to("cuda" if torch.cuda.is_available() else "cpu")')
    return [*lines, *_call(exported, prompt), *_saving(exported)]


def _dtype(exported: Exported) -> str:
    if exported.dtype == "float32":
        return ""
    kept = "".join(f", {_quoted(part)}: torch.float32" for part in exported.float32_parts)
    return (
        f", dtype={{{_quoted('default')}: torch.{exported.dtype}{kept}}}" if kept else f", dtype=torch.{exported.dtype}"
    )


def _call(exported: Exported, prompt: str) -> list[str]:
    """Return the lines of the pipeline's call; every argument by its name, as not all pipelines have `prompt` first."""
    before: list[str] = []
    lines = ["result = pipe(", f"    prompt={_quoted(prompt)},"]
    for name, value in exported.call.items():
        shown = _quoted(value) if isinstance(value, str) else value
        if isinstance(value, str) and name.endswith(_ENCODED):
            length = exported.call["max_sequence_length"]
            encoded = f"pipe.encode_prompt({shown}, max_sequence_length={length})[0]"
            shown = name.removesuffix(_ENCODED)
            before += ["with torch.no_grad():", f"    {shown} = {encoded}"]
        lines.append(f"    {name}={shown},")
    if exported.draws_frames:
        lines.append(f"    output_type={_quoted('pil')},")
    return [*before, *lines, ")"]


def _saving(exported: Exported) -> list[str]:
    if exported.is_video:
        return [f'export_to_video(result.frames[0], "clip.mp4", fps={_FRAMES_PER_SECOND})']
    picture = "frames[0][0]" if exported.draws_frames else "images[0]"
    return [f'result.{picture}.save("image.png")']


def _quoted(text: str) -> str:
    return repr(text) if '"' in text else json.dumps(text, ensure_ascii=False)
