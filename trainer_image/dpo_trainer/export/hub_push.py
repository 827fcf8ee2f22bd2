"""Copies an export to a repository of a hub, in one commit: the hub shows all of it or nothing. Files that are there already are not sent again."""

import json
import tempfile
from pathlib import Path
from typing import Any

from dpo_operator.api.access import HUB_URL
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import PushReport
from dpo_operator.api.training import Push
from dpo_trainer.export.push import WHOLE, Progress, contents
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration
from dpo_trainer.sources import hub
from dpo_trainer.sources.access import Access
from dpo_trainer.sources.kinds import HubSource
from dpo_trainer.sources.retrying import retrying

# What a hub puts into a new repository.
_OF_THE_HUB = {".gitattributes", "README.md"}


def push_to_hub(settings: Push, uid: str, folder: Path, access: Access, progress: Progress) -> PushReport:
    """Copy a verified export. uid: of the job. folder: the export. Does nothing when it is there already.

    Raises TrainerError: INVALID_CONFIGURATION when the repository has somebody else's files or is not private, ACCESS_DENIED, SOURCE_UNAVAILABLE.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    token, to = access.credentials.get("HF_TOKEN"), settings.to
    repo = to.removeprefix(HUB_URL)
    api = HfApi(token=token)
    digest, files = contents(folder)
    retrying(lambda: api.create_repo(repo, private=settings.private, exist_ok=True), to)
    there = hub.snapshot(HubSource(repo, None), token)
    mine: dict[str, Any] = {"uid": uid, "digest": digest, "files": files}
    found = _state(there, token, to)
    if found == mine:
        progress(f"already pushed to {to}")
        return PushReport(to=to, digest=digest, commit=there.commit)
    earlier = found.get("files") if found is not None and found.get("uid") == uid else None
    own = set(earlier) if isinstance(earlier, dict) else set()
    if others := sorted(there.sizes.keys() - own - _OF_THE_HUB - ({WHOLE} if own else set())):
        raise invalid_configuration(
            f"spec.export.push.to: {to} has files that are not of this job's export ({', '.join(others[:4])}); name a new repository"
        )
    # An existing repository stays as it is, whatever was asked for.
    if settings.private and not retrying(lambda: api.model_info(repo), to).private:
        raise invalid_configuration(
            f"spec.export.push.to: {to} is there already, and is not private; make it private, or set spec.export.push.private: false"
        )
    progress(f"pushing {len(files)} files to {to}")
    marker = json.dumps(mine, indent=1, sort_keys=True).encode()
    operations = [CommitOperationAdd(name, str(folder / name)) for name in sorted(files)]
    operations.append(CommitOperationAdd(WHOLE, marker))
    deletions = [CommitOperationDelete(name) for name in sorted(own & there.sizes.keys() - files.keys())]
    message = settings.commit_message or "Export of dpo-operator"

    def commit() -> str:
        # parent_commit: if somebody else commits meanwhile, the hub refuses this one.
        try:
            changes = [*operations, *deletions]
            return str(api.create_commit(repo, changes, commit_message=message, parent_commit=there.commit).oid)
        except HfHubHTTPError as error:
            if error.response.status_code not in (409, 412):
                raise
            # Or this commit landed before, and its answer was lost.
            now = hub.snapshot(HubSource(repo, None), token)
            if _state(now, token, to) == mine:
                return now.commit
            raise TrainerError(
                ExitCode.SOURCE_UNAVAILABLE,
                f"{to}: somebody else wrote to the repository meanwhile; nothing was pushed",
            ) from error

    done = retrying(commit, to)
    progress(f"pushed to {to}")
    return PushReport(to=to, digest=digest, commit=done)


def _state(there: hub.Snapshot, token: str | None, to: str) -> dict[str, Any] | None:
    """What an earlier push noted in the repository; None without one."""
    if WHOLE not in there.sizes:
        return None
    with tempfile.TemporaryDirectory() as folder:
        hub.download(there, [WHOLE], Path(folder), token)
        try:
            found = json.loads((Path(folder) / WHOLE).read_bytes())
        except ValueError:
            return None
    return found if isinstance(found, dict) else None
