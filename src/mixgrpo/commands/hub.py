"""An export on the Hugging Face hub. No torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixgrpo.errors import HubError
from mixgrpo.report.exported import MARKER

NOT_UPLOADED = (MARKER, ".*", "checkpoints/*", "*optimizer*")
"""The marker names paths of this machine; an export has nothing of the others, and should it ever, they stay here."""


def check_hub(repo: str) -> None:
    """Find the likely mistakes before anything is exported: a wrong name, a missing token.

    Raises:
        HubError: if nothing can be uploaded.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if repo.count("/") != 1:
        raise HubError("--push takes OWNER/NAME, the model's name on the hub, such as anna/flux-signs")
    if get_token() is None:
        raise HubError(
            "--push needs a token of the hub that may write, and there is none: log in with `hf auth login`, "
            "or set HF_TOKEN"
        )


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Upload an exported folder as the model `repo` and return its address; the model is made if it is not there.

    Raises:
        HubError: if the hub cannot be reached or refuses, or the model is there and public but is to be private.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _understood(repo):
        # Without --private, a new model is as the owner's settings on the hub say.
        url = api.create_repo(repo, private=True if private else None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise HubError(
                f"{repo} is there already and public, so nothing was uploaded: make it private on the hub, or leave "
                "out --private"
            )
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            ignore_patterns=list(NOT_UPLOADED),
            commit_message="Upload what mixgrpo exported",
        )
    return str(url)


@contextmanager
def _understood(repo: str) -> Iterator[None]:
    """Turn what the hub's client raises into one message."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        words = {
            401: "the token is not valid; log in again with `hf auth login`, or set HF_TOKEN",
            403: f"the token may not write to {repo.partition('/')[0]}: it needs the right to write, and to that owner",
            404: "there is no such owner or model, or the token may not see it",
        }
        raise HubError(f"{repo} was not uploaded: {words.get(status, error)} (the hub answered {status})") from error
    except LocalTokenNotFoundError as error:
        raise HubError(f"{repo} was not uploaded: there is no token; log in with `hf auth login`") from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repo} was not uploaded: HF_HUB_OFFLINE forbids the network") from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise HubError(f"{repo} was not uploaded: the hub cannot be reached ({error})") from error
