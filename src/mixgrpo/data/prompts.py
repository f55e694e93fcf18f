"""Prompt files, and which prompts an iteration gets as a pure function of (seed, iteration)."""

from importlib import resources
from pathlib import Path

from mixgrpo.errors import ConfigError
from mixgrpo.flow.keyed import keyed_generator

_PROMPT_ORDER = 0x70726F6D  # keeps the order's stream apart from every stream of sampling noise


def bundled_prompts() -> list[str]:
    """Return the names of the prompt files that come with the package."""
    folder = resources.files("mixgrpo") / "assets" / "prompts"
    return sorted(entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt"))


def load_prompts(source: str) -> list[str]:
    """Return the prompts of a bundled file (by its name) or of a text file, one prompt a line.

    Blank lines and lines that start with # are left out; so is a prompt that came before.

    Raises:
        ConfigError: if there is no such file, it is not UTF-8 text, or it holds no prompt.
    """
    if source in bundled_prompts():
        text = (resources.files("mixgrpo") / "assets" / "prompts" / f"{source}.txt").read_text(encoding="utf-8")
    else:
        path = Path(source)
        if not path.is_file():
            raise ConfigError(
                f"prompt file {source!r} is not a file, nor one that comes with the package "
                f"({', '.join(bundled_prompts())})"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"prompt file {source!r} is not UTF-8 text: {error}") from error
        except OSError as error:
            raise ConfigError(f"prompt file {source!r} cannot be read: {error}") from error
    lines = (line.strip() for line in text.splitlines())
    prompts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise ConfigError(f"prompt file {source!r} holds no prompt; it takes one a line")
    return prompts


def prompt_batch(seed: int, iteration: int, *, count: int, total: int) -> list[int]:
    """Return the `count` prompts, as indices below `total`, that `iteration` trains on.

    Prompts are drawn without replacement until all were seen, then in a new order.
    """
    first = iteration * count
    orders: dict[int, list[int]] = {}
    batch = []
    for position in range(first, first + count):
        epoch, place = divmod(position, total)
        if epoch not in orders:
            orders[epoch] = keyed_generator(seed, _PROMPT_ORDER, epoch).permutation(total).tolist()
        batch.append(orders[epoch][place])
    return batch
