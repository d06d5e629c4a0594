"""Publishing to the Hub over a network that may fail at any moment, and fetching what was published.

The client's own `upload_folder` sends a commit once more when the answer to the first is lost, and so makes two. Here
every attempt begins by looking at what the repository holds, and commits only what is still missing, on top of just
the state that it has looked at (`parent_commit`): a commit whose answer was lost is then found there, and another
publisher's in between is refused by the server and seen in the next attempt.
"""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from hf_proxadam.report import leaks, publication
from hf_proxadam.report.persistence import HubError, persistently
from hf_proxadam.report.publication import Publication
from hf_proxadam.report.text import plural

_WEIGHTS = ".safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """What a publication came to.

    Attributes:
        repo_id: with its owner.
        url: of the repository.
        commit: the commit that holds everything; None in an empty repository.
        changed: names of the files that were sent; empty where nothing had changed.
        deleted: names of files of an earlier publication that this one no longer has.
    """

    repo_id: str
    url: str
    commit: str | None
    changed: tuple[str, ...]
    deleted: tuple[str, ...]

    @property
    def told(self) -> str:
        """One line for a terminal."""
        if not self.changed and not self.deleted:
            return f"{self.url} holds all of it already: nothing was sent."
        gone = f", {plural(len(self.deleted), 'old file')} removed" if self.deleted else ""
        return f"{self.url} is published: {plural(len(self.changed), 'file')} sent{gone}, commit {self.commit}."


def publish(contents: Publication, repo_id: str, private: bool = False, token: str | None = None) -> Published:
    """Publish in one commit, or in none where the repository holds it all already.

    Files of others in the repository stay; those that an earlier publication of ours had and this one has not (a
    figure, gradient scales) are deleted in the same commit.

    Args:
        contents: what to publish.
        repo_id: `ORG/NAME` on the Hub; the repository is made where it is missing.
        private: make it a private one. An existing public repository is then refused.
        token: access token; default: the one that `hf auth login` saved, or `HF_TOKEN`.

    Raises:
        ValueError: a wrong name, something in the files that must not leave the machine, or a public repository where
            a private one was asked for.
        HubError: the Hub refused, or could not be reached in seven attempts.
    """
    check_name(repo_id)
    leaks.check(contents)
    api = HfApi(token=token)
    sent: set[str] = set()
    gone: set[str] = set()

    def attempt() -> Published:
        head = _head(api, repo_id, contents.repo_type, private)
        there = _tree(api, repo_id, contents.repo_type, head)
        added = [file for file in contents.files if there.get(file.path) not in (file.git_sha1, file.sha256)]
        wanted = {file.path for file in contents.files}
        stale = sorted(path for path in there if path not in wanted and contents.owns(path))
        commit = head
        if added or stale:
            # Kept over attempts: where an answer was lost, the next one finds nothing left to do.
            sent.update(file.path for file in added)
            gone.update(stale)
            operations: list[Any] = [
                CommitOperationAdd(
                    path_in_repo=file.path,
                    path_or_fileobj=file.source if isinstance(file.source, bytes) else str(file.source),
                )
                for file in added
            ]
            operations += [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in stale]
            with warnings.catch_warnings():
                # A model's gradient scales are meant to lie beside it.
                warnings.filterwarnings("ignore", message=".*about to commit a data file")
                commit = api.create_commit(
                    repo_id,
                    operations,
                    commit_message=f"Publish a {contents.kind} with hf_proxadam",
                    repo_type=contents.repo_type,
                    parent_commit=head,
                ).oid
        return Published(
            repo_id=repo_id,
            url=f"{api.endpoint}/{'datasets/' if contents.repo_type == 'dataset' else ''}{repo_id}",
            commit=commit,
            changed=tuple(sorted(sent)),
            deleted=tuple(sorted(gone)),
        )

    return persistently(attempt, repo_id)


def open_repository(repo_id: str, repo_type: str, private: bool = False, token: str | None = None) -> None:
    """Make the repository if it is missing, so that missing rights are told before a training and not after it.

    Raises:
        ValueError: a wrong name, or a public repository where a private one was asked for.
        HubError: the Hub refused, or could not be reached.
    """
    check_name(repo_id)
    api = HfApi(token=token)
    persistently(lambda: _head(api, repo_id, repo_type, private), repo_id)


def own_name(name: str, token: str | None = None) -> str:
    """`name` with the owner of the token before it.

    Raises:
        HubError: nobody is logged in, or the Hub can't be reached.
    """
    api = HfApi(token=token)
    return f"{persistently(lambda: api.whoami()['name'], name)}/{name}"


def fetch(repo_id: str, folder: Path) -> Path:
    """Download what a card is computed from (all but the weights) of a study or a model.

    Args:
        repo_id: `ORG/NAME`, a dataset (a study) or a model.
        folder: an empty folder to download to.

    Returns:
        `folder`.

    Raises:
        HubError: there is no such repository, no access, or the Hub can't be reached.
    """
    check_name(repo_id)
    api = HfApi()

    def attempt() -> Path:
        for repo_type in ("dataset", "model"):
            try:
                head = api.repo_info(repo_id, repo_type=repo_type).sha
            except RepositoryNotFoundError:
                continue
            kind: publication.Kind = "study" if repo_type == "dataset" else "model"
            for path in _tree(api, repo_id, repo_type, head):
                # Not whatever a stranger's repository may hold, nor weights: nothing in a card is computed from them.
                if publication.is_part(kind, path) and not path.endswith(_WEIGHTS):
                    hf_hub_download(repo_id, path, repo_type=repo_type, revision=head, local_dir=folder)
            return folder
        raise HubError(f"{repo_id} is neither a dataset nor a model on the Hub, or you have no access to it.")

    return persistently(attempt, repo_id)


def check_name(repo_id: str) -> None:
    """Refuse what can't be the name of a repository, before anything is asked or sent.

    Raises:
        ValueError: it is not of the form ORG/NAME.
    """
    try:
        validate_repo_id(repo_id)
        if not repo_id.isascii():  # which not every version of the client looks at
            raise HFValidationError("it must be of ASCII letters, digits, and the signs - _ . between them.")
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} can't be the name of a repository: {' '.join(str(error).split())}") from error
    if repo_id.count("/") != 1:
        raise ValueError(
            f"The repository is {repo_id!r}; give it as ORG/NAME, with its owner (a user or organization)."
        )


def _head(api: HfApi, repo_id: str, repo_type: str, private: bool) -> str | None:
    """The commit that the repository is at; the repository is made where it is missing."""
    try:
        info = api.repo_info(repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True)
        info = api.repo_info(repo_id, repo_type=repo_type)
    if private and not info.private:
        raise ValueError(
            f"{repo_id} is there already and is public: leave --private out, give another name, or make it private in "
            "its settings on the Hub."
        )
    return info.sha


def _tree(api: HfApi, repo_id: str, repo_type: str, revision: str | None) -> dict[str, str]:
    """Name of every file of a commit to the digest of its contents: SHA-256 where LFS keeps it, else git's SHA-1."""
    if revision is None:
        return {}
    try:
        entries = list(api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type))
    except (EntryNotFoundError, RevisionNotFoundError):  # no file was ever committed
        return {}
    return {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in entries if isinstance(entry, RepoFile)
    }
