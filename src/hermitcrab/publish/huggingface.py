"""Hugging Face, by its own library: create_repo, preupload_lfs_files, create_commit, list_repo_tree.

Files are given to the library as open files, which it sends by Git LFS over HTTP: a file whose sha256 the hub has is not sent, one
that broke off is. Its other way, Xet, has no digest to ask by before a file was cut up and is not used. Several files of equal
bytes are sent one after another, for the library would read one of them from two threads.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hermitcrab.errors import HermitcrabError, UsageError, needs
from hermitcrab.packaged import File
from hermitcrab.progress import say
from hermitcrab.publish import Remote, Target, hide
from hermitcrab.publish.files import Counted

MAIN = "main"


class HuggingFace:
    """One branch of one repository. The endpoint is the library's own matter (`HF_ENDPOINT`)."""

    def __init__(self, target: Target, secret: str):
        self.hub, self.errors = needs("huggingface_hub", "hub"), needs("huggingface_hub.errors", "hub")
        self.api = self.hub.HfApi(token=secret, library_name="hermitcrab")
        self.name, self.branch = target.name, target.branch or MAIN
        self.exists = False
        self.made: list[Any] = []
        self.handles: list[Counted] = []
        self.api.whoami()  # a wrong token is told here: elsewhere the hub answers as if there were no repository

    def look(self) -> Remote | None:
        try:
            info = self.api.model_info(self.name)
        except self.errors.RepositoryNotFoundError:
            return None
        self.exists = True
        if self.branch != MAIN:
            try:
                info = self.api.model_info(self.name, revision=self.branch)
            except self.errors.RevisionNotFoundError:
                # It will begin as the first branch is now.
                return Remote("", bool(info.private), self.read_back(str(info.sha)))
        return Remote(str(info.sha), bool(info.private), self.read_back(str(info.sha)))

    def create(self, public: bool) -> Remote:
        if not self.exists:
            self.api.create_repo(self.name, private=not public, exist_ok=True)
        if self.branch != MAIN:
            self.api.create_branch(self.name, branch=self.branch, exist_ok=True)
        made = self.look()
        if made is None or not made.commit:
            raise HermitcrabError(f"hf:{self.name}: the hub made the repository, and does not show it")
        return made

    def send(self, source: Path, file: File, seen: Callable[[int], None]) -> int:
        """What is small stays with the commit; the hub says which files are large."""
        handle = Counted(source, seen)
        self.handles.append(handle)
        addition = self.hub.CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=handle)
        if addition.upload_info.sha256.hex() != file.sha256:
            raise HermitcrabError(f"{source}: changed since the package was read a moment ago")
        self.made.append(addition)
        handle.counting = True
        self.api.preupload_lfs_files(self.name, [addition], revision=self.branch, num_threads=1, free_memory=False)
        handle.counting = False
        return handle.sent

    def commit(self, remote: Remote, removed: list[str], message: str) -> str:
        gone = [self.hub.CommitOperationDelete(path_in_repo=path, is_folder=False) for path in removed]
        made = self.api.create_commit(
            self.name, [*self.made, *gone], commit_message=message, revision=self.branch, parent_commit=remote.commit
        )
        return str(made.oid)

    def read_back(self, commit: str) -> dict[str, str]:
        entries = self.api.list_repo_tree(self.name, recursive=True, revision=commit)
        return {
            entry.path: f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}"
            for entry in entries
            if hasattr(entry, "blob_id")  # else a folder
        }

    def close(self) -> None:
        for handle in self.handles:
            handle.close()


def open_hub(target: Target, secret: str) -> HuggingFace:
    return HuggingFace(target, secret)


@contextmanager
def told_plainly(target: Target, name: str, secret: str) -> Iterator[None]:
    """Errors of the library in one sentence; its log lines and progress bars in our own words, without what signs an address."""
    bars = needs("huggingface_hub.utils", "hub")
    needs("huggingface_hub.utils.logging", "hub")  # which adds its handler when it is first imported
    log, handler = logging.getLogger("huggingface_hub"), _Told(secret)
    before, quiet = (log.handlers[:], log.propagate), bars.are_progress_bars_disabled()
    log.handlers, log.propagate = [handler], False
    bars.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (HermitcrabError, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001 - whatever the library raises; it shows addresses that are signed
        raise _sentence(error, target, name, secret) from None
    finally:
        log.handlers, log.propagate = before
        if not quiet:
            bars.enable_progress_bars()


class _Told(logging.Handler):
    def __init__(self, secret: str):
        super().__init__(logging.WARNING)
        self.secret = secret

    def emit(self, record: logging.LogRecord) -> None:
        if "Xet" not in record.getMessage():
            say(f"  {hide(record.getMessage(), self.secret)[:300]}")


def _sentence(error: Exception, target: Target, name: str, secret: str) -> HermitcrabError:
    where = f"{target.hub}:{target.name}"
    causes: list[Any] = [error, *filter(None, (error.__cause__, error.__context__))]
    status = next((e.response.status_code for e in causes if getattr(e, "response", None) is not None), None)
    said = next((e.server_message for e in causes if getattr(e, "server_message", None)), None) or str(error)
    said = hide(said, secret)[:300]
    if status == 401:
        return UsageError(f"{where}: the hub does not accept the token in {name} (401)")
    if status == 403:
        return HermitcrabError(
            f"{where}: the token in {name} may not do this (403): {said}. It needs the right to write there"
        )
    if status in (409, 412):
        return HermitcrabError(
            f"{where}: the branch was changed by somebody else meanwhile ({status}); run the same command again"
        )
    if status is not None:
        return HermitcrabError(
            f"{where}: the hub answers {status}: {said}. What has arrived is kept; the same command goes on"
        )
    if not isinstance(error, OSError) and not any(type(e).__module__.startswith("http") for e in causes):
        return HermitcrabError(f"{where}: the hub's library refuses this ({type(error).__name__}: {said})")
    return HermitcrabError(
        f"{where}: the hub cannot be reached or broke off ({type(error).__name__}: {said}). What has arrived is kept; "
        "the same command goes on"
    )
