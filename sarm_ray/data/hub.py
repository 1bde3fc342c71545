"""Repositories of the Hub: their names and revisions, fetching and listing their files, and pushing some when asked."""

import os
import re
import tempfile
from pathlib import Path
from urllib.parse import unquote

from sarm_ray.data import storage
from sarm_ray.data.store_errors import foreign_errors, one_line
from sarm_ray.errors import ConfigError, DatasetError

# owner/name, and a revision of one path component (a slash in it is written %2F) or one of the Hub's own refs
_DATASET_URI = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/(?:pr|convert)/[^/]+|[^/]+))?/*")


def parse_dataset_uri(name: str, revision: str | None) -> tuple[str, str | None]:
    """`hf://datasets/owner/name[@revision][/]` as Hub id and revision; any other name as it is.

    Raises:
        ConfigError: the name says another revision than `revision`.
        DatasetError: an hf:// name without a kind, an owner and a name in it.
    """
    if name.startswith("hf://") and name.rstrip("/").count("/") < 4:
        raise DatasetError(f"{name}: not a dataset on the Hub; they are called hf://datasets/owner/name[@revision]")
    match = _DATASET_URI.fullmatch(name)
    if match is None:
        return name, revision
    own = unquote(match[2]) if match[2] else None
    if own and revision and own != revision:
        raise ConfigError(f"{name} asks for revision {own}, --revision for {revision}; give one of them")
    return match[1], own or revision


def is_hub_id(name: str) -> bool:
    """`owner/name` and nothing that looks like a path or URL."""
    owner, _, repository = name.partition("/")
    return bool(owner) and bool(repository) and "/" not in repository and not name.startswith((".", "~", "/"))


def lerobot_home() -> Path:
    """LeRobot's own place for datasets: $HF_LEROBOT_HOME, else $HF_HOME/lerobot."""
    hub_home = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
    return Path(os.environ.get("HF_LEROBOT_HOME") or Path(hub_home) / "lerobot").expanduser()


def download_from_hub(repo_id: str, patterns: list[str], revision: str | None, repo_type: str) -> str:
    """The given files of a Hub repository, in the Hub's own cache.

    Args:
        repo_id: `owner/name`.
        patterns: exact file names or globs; nothing else is fetched.
        revision: branch, tag or commit; None is the default branch.
        repo_type: `dataset` or `model`.

    Returns:
        The local snapshot folder.

    Raises:
        DatasetError: the repository cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return snapshot_download(repo_id, repo_type=repo_type, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise DatasetError(
            f"{repo_id}: no such local folder, and the Hub has no such {repo_type} within reach ({one_line(error)})"
        ) from error


def is_offline() -> bool:
    """Whether the Hub must not be asked (HF_HUB_OFFLINE=1)."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def list_repository(repo_id: str, revision: str | None) -> dict[str, str]:
    """All files of a Hub dataset: path -> stamp (size and content id), without fetching any."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        tree = list(HfApi().list_repo_tree(repo_id, repo_type="dataset", revision=revision, recursive=True))
    except _hub_errors() as error:
        raise DatasetError(
            f"{repo_id}: the Hub does not list its files ({one_line(error)}); with HF_HUB_OFFLINE=1 those that are on "
            "this machine are used"
        ) from error
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    return {file.path: f"{file.size}-{file.lfs.sha256 if file.lfs else file.blob_id}" for file in files}


def list_snapshot(folder: str) -> dict[str, str]:
    """Files of a snapshot in the Hub's cache: path -> stamp, the same as `list_repository`'s.

    The cache is made of links to blobs that are named by their content id. Where links cannot be made it holds the files
    themselves, and the stamps are theirs.
    """
    stamps = storage.list_files(folder)
    for path, stamp in stamps.items():
        file = Path(folder) / path
        if file.is_symlink():
            stamps[path] = f"{storage.size_of(stamp)}-{file.resolve().name}"
    return stamps


def require_token(repo_id: str) -> None:
    """Pushing needs a token, better found out before the work than after it.

    Raises:
        DatasetError: there is none.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise DatasetError(f"{repo_id}: pushing needs a Hugging Face token; run `hf auth login` or set HF_TOKEN")


def place_push(name: str, revision: str | None) -> tuple[str, str | None]:
    """The Hub repository and branch that a dataset was named by, and that may be pushed to.

    Raises:
        ConfigError: it was not named by its Hub id.
        DatasetError: there is no token.
    """
    repo_id, branch = parse_dataset_uri(name, revision)
    if Path(name).expanduser().exists() or not is_hub_id(repo_id):
        raise ConfigError(
            f"{name} is no Hub id, so --push-to-hub has nowhere to push to; give the dataset as owner/name"
        )
    require_token(repo_id)
    return repo_id, branch


def upload_to_hub(
    repo_id: str, repo_type: str, files: dict[str, str], message: str, revision: str | None = None
) -> str:
    """Commit files to a repository that exists, all of them or none.

    Args:
        repo_id: `owner/name`.
        repo_type: `dataset` or `model`.
        files: path in the repository -> location, local or remote.
        message: of the commit.
        revision: the branch; None is the default one.

    Returns:
        The commit's URL.

    Raises:
        DatasetError: no token, no permission, no such repository or branch, or no Hub within reach.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    require_token(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        copies = {
            path: _local_file(location, Path(folder) / str(n)) for n, (path, location) in enumerate(files.items())
        }
        operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=copy) for path, copy in copies.items()]
        try:
            commit = HfApi().create_commit(
                repo_id, operations, commit_message=message, repo_type=repo_type, revision=revision
            )
        except RevisionNotFoundError as error:
            raise DatasetError(f"{repo_id}: there is no branch {revision!r} to push to; nothing was pushed") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status == 403:
                cause = "the token may not write to it; take one with write access"
            elif status == 401 and not isinstance(error, RepositoryNotFoundError):
                cause = "the Hub does not accept the token; run `hf auth login` or set HF_TOKEN"
            elif isinstance(error, RepositoryNotFoundError):
                cause = f"the Hub has no such {repo_type}, or the token may not see it; create it there first"
            else:
                cause = one_line(error)
            raise DatasetError(f"{repo_id}: {cause}; nothing was pushed") from error
        except _hub_errors() as error:
            raise DatasetError(f"{repo_id}: {one_line(error)}; nothing was pushed") from error
    return commit.commit_url


def _local_file(location: str, copy: Path) -> str:
    """A file's path on this machine, which for a remote one is that of a copy."""
    try:
        if storage.is_local(location):
            storage.file_stamp(location)
            return storage.open_filesystem(location)[1]
        with copy.open("wb") as target:
            target.writelines(storage.read_pieces(location, storage.size_of(storage.file_stamp(location))))
    except FileNotFoundError:
        raise DatasetError(f"{location}: no such file; nothing was pushed") from None
    return str(copy)


def _hub_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HFValidationError

    return (OSError, HFValidationError, *foreign_errors())
