"""What type a model's weights are stored in."""

from collections import Counter
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mixgrpo.errors import ModelError

_WIDE = ("F32", "F64")
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def stored_dtype(folder: Path) -> tuple[str, str]:
    """Return the type to load a diffusers folder in, float32 or bfloat16, and the one that most weights are stored in.

    float32 only if the transformer is stored so; everything narrower is taken for bfloat16. Only headers are read.

    Raises:
        ModelError: if the transformer has no weights in safetensors, or they cannot be read.
    """
    counts: Counter[str] = Counter()
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        if "." in file.stem:  # a variant, such as fp16, which is not loaded
            continue
        try:
            with safe_open(file, framework="pt") as content:
                for name in content.keys():  # noqa: SIM118 - not a mapping
                    part = content.get_slice(name)
                    counts[part.get_dtype()] += prod(part.get_shape())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from error
    if not counts:
        raise ModelError(f"the model in {folder} has no weights in transformer/*.safetensors")
    [(most, _)] = counts.most_common(1)
    return "float32" if most in _WIDE else "bfloat16", _NAMES.get(most, most)
