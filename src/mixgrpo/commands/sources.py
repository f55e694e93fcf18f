"""Which model the command line means, and what is known about how it is used."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mixgrpo.config.load import load_config
from mixgrpo.config.presets import model_names
from mixgrpo.config.schema import Config
from mixgrpo.config.sections import ModelConfig
from mixgrpo.errors import CheckpointError
from mixgrpo.report.exported import MARKER, Exported, read_exported

_NOT_SAID = {"num_frames": 1, "guidance_scale_2": 0.0, "negative_prompt": ""}
"""What an export does not say, because it is so."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model as the command line names it."""

    name: str
    run: Path | None = None
    """The run whose result is meant, if a run folder was given."""
    known: Config | None = None
    """Settings that say how this model is used: those of its run, or of a preset for it or for what it was made of."""
    exported: Exported | None = None
    """What the folder says of itself, if it is an export."""

    @property
    def is_adapter(self) -> bool:
        """Whether `name` is a folder with an adapter alone, which goes on top of another model."""
        return self.exported is not None and self.exported.is_adapter

    @property
    def path(self) -> str:
        """The model that is loaded, as a folder, hub id or name."""
        if self.exported is not None:
            return self.exported.base if self.exported.is_adapter else self.name
        return self.known.model.path if self.run is not None and self.known is not None else self.name

    @property
    def num_steps(self) -> int | None:
        """Denoising steps with which held-out pictures were drawn; None if that is not known."""
        of_export = self.exported.call.get("num_inference_steps") if self.exported else None
        return of_export or (self.known.eval.num_steps if self.known else None)

    def model(self) -> ModelConfig | None:
        """Return how the model is loaded and called; None if nothing is known about it.

        An export's own words go before those of a preset. A whole pipeline of a run with quantised weights is not
        quantised.

        Raises:
            CheckpointError: if what an export says cannot be.
        """
        model = self.known.model.model_dump() if self.known else {}
        exported = self.exported
        if exported is None or not (model or exported.call):  # the first exports said nothing of their call
            return self.known.model if self.known else None
        if exported.call:
            said = {name: value for name, value in exported.call.items() if name in ModelConfig.model_fields}
            model |= {**_NOT_SAID, **said, "dtype": exported.dtype}
        if not exported.is_adapter:
            model |= {"quantize": "off", "revision": ""}
        try:
            return ModelConfig.model_validate(model | {"path": self.path})
        except ValidationError as error:
            file, first = Path(self.name).expanduser() / MARKER, error.errors()[0]
            words = f"{'.'.join(map(str, first['loc']))} is {first['input']!r}; {first['msg'].lower()}"
            raise CheckpointError(f"{file} is damaged: {words}. Export the run again") from None


def find_source(name: str) -> Source:
    """Find out what a model's name means: a run, a run's export, or a model that a preset is made for.

    Raises:
        CheckpointError: if the folder is a damaged export.
    """
    folder = Path(name).expanduser()
    if (folder / "resolved.json").is_file():
        return Source(name, folder, load_config(folder / "resolved.json"))
    exported = read_exported(folder)
    of_run = folder.parent / "resolved.json"
    if of_run.is_file() and (exported is not None or (folder / "model_index.json").is_file()):
        return Source(name, known=load_config(of_run), exported=exported)
    return Source(name, known=_preset_for(exported.base if exported else name), exported=exported)


def _preset_for(model: str) -> Config | None:
    presets = (load_config(preset) for preset in model_names())
    return next((preset for preset in presets if preset.model.path == model), None)
