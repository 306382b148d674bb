"""The hub's word on who may read a model and who may write one; an export sent there.

Messages are for people who have never logged in: what the hub asks for, and the command that gives it.
"""

import re
import shlex
from pathlib import Path
from typing import Any

from medreason.config import ConfigError, RunFailed, check

LOGIN = "hf auth login (or HF_TOKEN=TOKEN)"


class NotAllowed(ConfigError):
    """The hub has it, and does not give it to everyone."""


def hub_name(given: str) -> bool:
    """Whether a text is the name of something on the hub (OWNER/NAME), and no folder here."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", given) is not None and not Path(given).exists()


def check_readable(model: str, revision: str | None) -> None:
    """Raises NotAllowed, in seconds, for a model that the hub hands out to others; its own errors for the rest."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi()
    try:
        if hub.model_info(model, revision=revision, timeout=5).gated:  # anyone may read about it
            hub.auth_check(model)
    except HfHubHTTPError as error:
        if said := refusal(model, error):
            raise NotAllowed(said) from error
        raise


def refusal(name: str, error: Any) -> str | None:
    """What to do about an answer of the hub that says who may; None for an answer that says something else."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{name} is gated: accept its terms at {constants.ENDPOINT}/{name}, then {LOGIN}"
    status = error.response.status_code
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no {name} for you: misspelt, or private (then {LOGIN})" if status == 401 else None
    if status in (401, 403):
        return f"the hub does not take the token here for {name}: {LOGIN} with one that may"
    return None


def check_push(name: str, public: bool) -> None:
    """Raises ConfigError, in seconds, where an export could not be sent to the hub as `name` (OWNER/NAME)."""
    import httpx
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    rule = "be OWNER/NAME, of letters, digits, -, _ and ."
    check(re.fullmatch(r"[\w-]+/[\w.-]+", name, re.ASCII) is not None, "push", rule, name)
    if constants.is_offline_mode():
        raise ConfigError(f"push={name}: HF_HUB_OFFLINE is set; unset it")
    hub = HfApi()
    if get_token() is None:
        raise ConfigError(f"push={name}: no token of the hub here: {LOGIN}, with the right to write")
    try:
        who = hub.whoami()
        owners = [who["name"], *(one["name"] for one in who.get("orgs") or [])]
        if name.partition("/")[0] not in owners:
            raise ConfigError(f"push={name}: {who['name']} may write to {', '.join(owners)}; take one as OWNER")
        if ((who.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
            raise ConfigError(f"push={name}: the token here may only read: {LOGIN} with one that may write")
        private = hub.model_info(name, timeout=5).private
    except HFValidationError:  # of `--`, of a dot at an end
        check(False, "push", rule, name)
    except RepositoryNotFoundError:
        return  # it is made once there is something to put into it
    except HfHubHTTPError as error:
        raise ConfigError(f"push={name}: {refusal(name, error) or first_line(error)}") from error
    except (OSError, httpx.HTTPError) as error:
        raise ConfigError(f"push={name}: the hub does not answer ({type(error).__name__}); leave push out") from error
    if not private and not public:
        raise ConfigError(f"push={name}: is public on the hub; say public=true, or name another")


def push(folder: Path, name: str, public: bool) -> str:
    """Sends a folder to the hub as the model `name`, made where there is none: private unless `public`. Its address.

    Raises RunFailed, with the command that tries it again, where the hub does not take it.
    """
    import httpx
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(name, private=not public, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported with medreason")
    except (OSError, ValueError, httpx.HTTPError) as error:
        why = refusal(name, error) if hasattr(error, "response") else None
        raise RunFailed(
            f"push={name}: {why or first_line(error)}; the export is whole: hf upload {name} {shlex.quote(str(folder))}"
        ) from error
    return f"{hub.endpoint}/{name}"


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
