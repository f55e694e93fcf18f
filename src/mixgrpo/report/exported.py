"""What an exported folder is: its `mixgrpo.json`, and the Python that loads it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mixgrpo.errors import CheckpointError
from mixgrpo.shapes.files import BUNDLED

MARKER = "mixgrpo.json"
"""Says of a folder that we wrote it, and from what."""

_CALL = ("height", "width", "num_frames", "guidance_scale", "guidance_scale_2", "max_sequence_length")
"""Settings of a model that its pipeline's call takes under the same names."""
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
    call: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the pipeline's call with which held-out images were drawn."""
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


def call_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a pipeline's call that a run's resolved config says."""
    model = config["model"]
    found = {name: model[name] for name in _CALL if name in model}
    if found.get("num_frames") == 1:
        del found["num_frames"]
    if found.get("guidance_scale_2") == 0:
        del found["guidance_scale_2"]
    if model.get("negative_prompt"):
        found["negative_prompt"] = model["negative_prompt"]
    return {**found, "num_inference_steps": config["eval"]["num_steps"]}


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
    source, imports = _quoted(where), [f"from diffusers import {exported.pipeline}"]
    if exported.is_adapter:
        source = _quoted(base or exported.base)
        if exported.base in BUNDLED:
            source = f"bundled_folder({_quoted(exported.base)})"
            imports.append("from mixgrpo.models import bundled_folder")
    dtype = ""
    if exported.dtype != "float32":
        imports.insert(0, "import torch")
        dtype = f", dtype=torch.{exported.dtype}"
    if exported.is_video:
        imports.append("from diffusers.utils import export_to_video")
    lines = [*imports, "", f"pipe = {exported.pipeline}.from_pretrained({source}{dtype})"]
    if exported.is_adapter:
        lines.append(f"pipe.load_lora_weights({_quoted(where)})")
        if exported.second_adapter:
            second = f"weight_name={_quoted(exported.second_adapter)}, load_into_transformer_2=True"
            lines.append(f"pipe.load_lora_weights({_quoted(where)}, {second})")
    lines += ["result = pipe(", f"    {_quoted(prompt)},"]
    lines += [f"    {name}={_quoted(v) if isinstance(v, str) else v}," for name, v in exported.call.items()]
    if exported.is_video:
        return [*lines, ")", f'export_to_video(result.frames[0], "clip.mp4", fps={_FRAMES_PER_SECOND})']
    return [*lines, ")", 'result.images[0].save("image.png")']


def _quoted(text: str) -> str:
    return repr(text) if '"' in text else json.dumps(text, ensure_ascii=False)
