"""Whether the model can be had: in a folder, in the cache of the hub, or on the hub."""

from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from mixgrpo.config.sections import ModelConfig
from mixgrpo.doctor.finding import Finding, size
from mixgrpo.errors import ModelError
from mixgrpo.models import BUNDLED
from mixgrpo.models.registry import find_folder
from mixgrpo.shapes.files import is_hub_id

_ABOUT = "model"


def check_model(model: ModelConfig, api: HfApi | None = None) -> tuple[Finding, int]:
    """Say whether the model can be loaded, and how many bytes would be downloaded for it."""
    if not is_hub_id(model.path):
        try:
            find_folder(model.path)
        except ModelError as error:
            return Finding(_ABOUT, "problem", str(error)), 0
        return Finding(_ABOUT, "ok", f"{model.path}{', bundled' if model.path in BUNDLED else ''}"), 0
    revision = model.revision or None
    if isinstance(try_to_load_from_cache(model.path, "model_index.json", revision=revision), str):
        return Finding(_ABOUT, "ok", f"{model.path} is in the hub's cache, {constants.HF_HUB_CACHE}"), 0
    return _ask_hub(model, api or HfApi())


def _ask_hub(model: ModelConfig, api: HfApi) -> tuple[Finding, int]:
    page = f"{constants.ENDPOINT}/{model.path}"
    try:
        api.auth_check(model.path)
        info = api.model_info(model.path, revision=model.revision or None, files_metadata=True)
    except GatedRepoError:
        remedy = f"accept the licence on {page} and give a token: hf auth login, or the variable HF_TOKEN"
        return Finding(_ABOUT, "problem", f"{model.path} is gated and this account has no access", remedy), 0
    except RevisionNotFoundError:
        return Finding(_ABOUT, "problem", f"{model.path} has no revision {model.revision!r}", f"see {page}"), 0
    except RepositoryNotFoundError:
        remedy = "check the name; a private model needs a token: hf auth login"
        return Finding(_ABOUT, "problem", f"the hub has no {model.path} that this account can see", remedy), 0
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        words = f"{model.path} is not in the hub's cache, and the hub does not answer: {str(error).splitlines()[0]}"
        return Finding(_ABOUT, "problem", words, "download it elsewhere, and give its folder as model.path"), 0
    wanted = sum(
        file.size or 0
        for file in info.siblings or []
        if file.rfilename.endswith(".safetensors") and "/" in file.rfilename
    )
    return Finding(_ABOUT, "ok", f"{model.path} is open to this account; {size(wanted)} to download"), wanted


def hub_cache() -> Path:
    """Return where downloads go."""
    return Path(constants.HF_HUB_CACHE)
