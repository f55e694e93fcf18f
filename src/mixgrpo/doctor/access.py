"""Whether what a run loads can be had: in a folder, in the cache of the hub, or on the hub."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import ModelConfig
from mixgrpo.doctor.finding import Finding, size
from mixgrpo.doctor.parts import INDEX, lacking_parts, loaded_files, missing_parts
from mixgrpo.errors import ConfigError, ModelError
from mixgrpo.models import BUNDLED
from mixgrpo.models.registry import find_folder, read_index
from mixgrpo.rewards import missing_extra, reward_sources
from mixgrpo.rewards.sources import Names, Source
from mixgrpo.shapes.files import is_hub_id

Sizes = Mapping[str, int]
"""Bytes of every file of a hub repository, by name."""


class FilesCheck(NamedTuple):
    """What there is to say of a reward's files."""

    findings: list[Finding]
    download: int
    """Bytes that are not here yet. Files that rewards share are counted for each."""

    @property
    def are_here(self) -> bool:
        """Whether the reward can be made from what is on this machine."""
        return not self.download and all(finding.state == "ok" for finding in self.findings)


class _NotThereError(Exception):
    """A repository of the hub cannot be had; the message says why, and `remedy` what to do."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.remedy = remedy


def check_model(model: ModelConfig, api: HfApi | None = None) -> tuple[Finding, int]:
    """Say whether the model can be loaded, and how many bytes would be downloaded for it.

    Of a model on the hub, at most its `model_index.json` is downloaded, which says what parts there are.
    """
    about = "model"
    if not is_hub_id(model.path) or model.path in BUNDLED:
        try:
            missing = _missing(find_folder(model.path))
        except (ModelError, _NotThereError) as error:
            return Finding(about, "problem", str(error)), 0
        if missing:
            words = f"{model.path} has no safetensors, or not all, for {', '.join(missing)}"
            return Finding(about, "problem", words, "copy or download the folder again, whole"), 0
        return Finding(about, "ok", f"{model.path}{', bundled' if model.path in BUNDLED else ''}"), 0
    try:
        cached = try_to_load_from_cache(model.path, INDEX, revision=model.revision or None)
        missing = _missing(Path(cached).parent) if isinstance(cached, str) else []
        if isinstance(cached, str) and not missing:
            return Finding(about, "ok", f"{model.path} is in the hub's cache, {constants.HF_HUB_CACHE}"), 0
        count = _size_of_parts(model, api or HfApi())
    except _NotThereError as error:
        return Finding(about, "problem", str(error), error.remedy), 0
    words = f"{model.path} is open to this account; {size(count)} to download"
    return Finding(about, "ok", f"{words}, for {', '.join(missing)}" if missing else words), count


def _missing(folder: Path) -> list[str]:
    """Return the parts of a pipeline that are not whole in its folder."""
    try:
        return missing_parts(folder)
    except ModelError as error:
        raise _NotThereError(str(error), "take it away, and it is downloaded again") from error


def _size_of_parts(model: ModelConfig, api: HfApi) -> int:
    """Return the bytes of what diffusers would download: the files of the parts, but for those in the cache."""
    revision, otherwise = model.revision or None, "download it elsewhere, and give its folder as model.path"
    sizes = _ask_hub(api, model.path, model.revision, otherwise)
    if INDEX not in sizes:
        raise _NotThereError(f"{model.path} on the hub has no {INDEX}", "name a model in the format of diffusers")
    with _explained(model.path, model.revision, otherwise):
        index = read_index(Path(api.hf_hub_download(model.path, INDEX, revision=revision)).parent)
    if lacking := lacking_parts(index, sizes):
        words = f"{model.path} on the hub has no safetensors for {', '.join(lacking)}"
        raise _NotThereError(words, "convert it: load it with diffusers and save_pretrained, and give its folder")
    wanted = loaded_files(index, sizes)
    return sum(sizes[name] for name in wanted if not _is_cached(model.path, name, revision))


def check_reward_files(config: Config, api: HfApi | None = None) -> dict[str, FilesCheck]:
    """Say of every reward that has files, by its name, whether they can be had.

    A package that a reward lacks is found as well, before its files are fetched in vain. Nothing is loaded.
    """
    found: dict[str, FilesCheck] = {}
    for reward in config.rewards:
        use, about = reward.use or reward.name, f"reward {reward.name}"
        checked = [_check_source(about, source, api) for source in reward_sources(use, reward.options)]
        lacking = missing_extra(use)
        findings = [finding for finding, _ in checked]
        findings += [Finding(about, "problem", str(lacking))] if lacking is not None else []
        if findings:
            found[reward.name] = FilesCheck(findings, sum(count for _, count in checked))
    return found


def _check_source(about: str, source: Source, api: HfApi | None) -> tuple[Finding, int]:
    path = source.path
    if not source.is_on_hub:
        try:
            for names in source.files:
                source.require(*names)
        except ConfigError as error:
            return Finding(about, "problem", str(error)), 0
        return Finding(about, "ok", f"the files of options.{source.option} are in {path}"), 0
    missing = [names for names in source.files if not any(_is_cached(path, name) for name in names)]
    if not missing:
        return Finding(about, "ok", f"{path} is in the hub's cache, {constants.HF_HUB_CACHE}"), 0

    def wanted(sizes: Sizes) -> int:
        return sum(_size_of_first(names, sizes, path) for names in missing)

    otherwise = str(source.error("it cannot be downloaded here"))
    try:
        count = wanted(_ask_hub(api or HfApi(), path, "", otherwise))
    except _NotThereError as error:
        return Finding(about, "problem", str(error), error.remedy), 0
    return Finding(about, "ok", f"{path} is open to this account; {size(count)} to download"), count


def _is_cached(repository: str, name: str, revision: str | None = None) -> bool:
    return isinstance(try_to_load_from_cache(repository, name, revision=revision), str)


def _size_of_first(names: Names, sizes: Sizes, repository: str) -> int:
    """Return the bytes of the first file of those names; of an index, those of the weights that it stands for."""
    name = next((name for name in names if name in sizes), None)
    if name is None:
        raise _NotThereError(f"{repository} on the hub has no {' or '.join(names)}", "name a repository that has")
    if not name.endswith(".index.json"):
        return sizes[name]
    return sum(count for other, count in sizes.items() if "/" not in other and other.endswith(".safetensors"))


def _ask_hub(api: HfApi, repository: str, revision: str, otherwise: str) -> Sizes:
    with _explained(repository, revision, otherwise):
        api.auth_check(repository)
        info = api.model_info(repository, revision=revision or None, files_metadata=True)
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


@contextmanager
def _explained(repository: str, revision: str, otherwise: str) -> Iterator[None]:
    """Turn what the hub's client raises into why a repository cannot be had."""
    page = f"{constants.ENDPOINT}/{repository}"
    try:
        yield
    except GatedRepoError as error:
        remedy = f"accept the licence on {page} and give a token: hf auth login, or the variable HF_TOKEN"
        raise _NotThereError(f"{repository} is gated and this account has no access", remedy) from error
    except RevisionNotFoundError as error:
        raise _NotThereError(f"{repository} has no revision {revision!r}", f"see {page}") from error
    except RepositoryNotFoundError as error:
        remedy = "check the name; a private model needs a token: hf auth login"
        raise _NotThereError(f"the hub has no {repository} that this account can see", remedy) from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        said = str(error).splitlines()[0]
        why = f"{repository} is not in the hub's cache, or not whole, and the hub does not answer: {said}"
        raise _NotThereError(why, otherwise) from error


def hub_cache() -> Path:
    """Return where downloads go."""
    return Path(constants.HF_HUB_CACHE)
