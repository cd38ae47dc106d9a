"""Weights from the hub into its local cache: a break loses nothing, and what cannot be had is said with what to do about it.

`huggingface_hub` goes on after a break within one call and throws a half file away when the call or the process ends. Large files are
therefore read here, into a file that stays and is gone on with, held against the digest that the hub states, and put where the
library looks for it; the library does the rest. Nothing but `palimpsest download` calls this: a run never reaches for the network.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.weights import hub_cache

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Files that are read of a checkpoint: never pickles; of a diffusers folder no weights beside the folders of its parts.
PLAIN = ("*.json", "*.txt", "*.model")
DIFFUSERS = (*PLAIN, "*/*.safetensors")
FLAT = (*PLAIN, "*.safetensors")
IGNORED = ("*.fp16.safetensors", "*non_ema*", "onnx/*", "flax/*")
# Large, and read by few: fetched only when its weights are asked for by name.
CHECKER = "safety_checker/"
TRIES = 8
LONGEST = 60.0
DEAD = (401, 403, 404)


class Refused(RuntimeError):
    """Weights that were not fetched; the message says why, and what to do."""


class Broken(OSError):
    """A file whose content is not what the hub states; trying again may help."""


def offline() -> bool:
    """Whether the environment forbids the network."""
    from huggingface_hub import constants

    told = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return constants.is_offline_mode() or any(value.upper() in ("1", "ON", "YES", "TRUE") for value in told)


def fetch(
    repo: str,
    revision: str | None,
    patterns: Sequence[str] = DIFFUSERS,
    *,
    instead: str = "a local folder",
    licence: str = "",
    tries: int = TRIES,
    wait: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = print,
) -> Path:
    """The snapshot of a hub repository in the local cache, complete. Raises Refused.

    revision: commit, branch or tag; None: main. patterns: files to fetch. instead: what may take its place, for messages. tries: how
    often it is tried again after a break, with longer and longer waits, beside what the library does by itself.
    """
    if offline():
        raise Refused(
            f"{repo}: nothing is downloaded, because HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set. Unset it, or fetch it on a machine "
            f"with network and copy that machine's hub cache to {hub_cache()}, or use {instead}."
        )
    for attempt in range(tries + 1):
        try:
            return _once(repo, revision, patterns, say)
        except Exception as error:
            final = _final(error, repo, revision, instead, licence)
            if final:
                raise Refused(final) from error
            if attempt == tries:
                raise Refused(
                    f"{repo}: given up after {tries + 1} tries: {error}. What came is kept: give the same command again to go on."
                ) from error
            pause = min(LONGEST, 2.0**attempt)
            first = str(error).partition("\n")[0]
            say(f"{repo}: {type(error).__name__}: {first}; trying again in {pause:g} s")
            wait(pause)
    raise AssertionError("unreachable")


def _final(error: Exception, repo: str, revision: str | None, instead: str, licence: str) -> str:
    """What to say of an error that another try would not change; empty for one that it may."""
    from huggingface_hub import errors

    again = "then give the same command again"
    if isinstance(error, errors.GatedRepoError):
        terms = f" ({licence})" if licence else ""
        return (
            f"{repo} is gated: its authors want its licence{terms} to be accepted first. Log in on the hub, open the page of {repo}, read "
            f"and accept the licence there; make a token with read access, run `hf auth login` (or set HF_TOKEN), {again}. "
            f"Or use {instead}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}; look at its page for a commit, set the revision in the settings, {again}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{repo} does not exist on the hub, or is private and your token may not see it. Compare the name with its page; for a private "
            f"one run `hf auth login` (or set HF_TOKEN), {again}. Or use {instead}."
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HfHubHTTPError) and status in DEAD:
        return f"{repo}: the hub refuses it ({status}). Check your token with `hf auth whoami`, {again}. Or use {instead}."
    if isinstance(error, errors.HFValidationError | ValueError):
        return f"{repo}: {error}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{repo}: no space left in {hub_cache()}. Free some or set HF_HUB_CACHE to a larger disk, {again}; what came is kept."
    return "" if _passing(error, status) else f"{repo}: {type(error).__name__}: {error}"


def _passing(error: Exception, status: int | None) -> bool:
    """Whether a break may pass by itself."""
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return status in (408, 416, 429) or (status or 0) >= 500
    if isinstance(error, errors.LocalEntryNotFoundError):
        return True
    # a size that is not the expected one is a plain OSError of the library
    return isinstance(error, httpx2.TransportError | Broken | ConnectionError) or type(error) is OSError


def _once(repo: str, revision: str | None, patterns: Sequence[str], say: Callable[[str], None]) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # lines are said instead, which a log can hold
    endpoint = os.environ.get("HF_ENDPOINT")
    api = HfApi(endpoint=endpoint)
    commit = api.repo_info(repo, revision=revision).sha
    listed = [
        file for file in api.list_repo_tree(repo, recursive=True, revision=commit) if hasattr(file, "size")
    ]
    ignored = [*IGNORED, *([] if any(p.startswith(CHECKER) for p in patterns) else [f"{CHECKER}*"])]
    chosen = [file for file in listed if _wanted(file.path, patterns, ignored)]
    if ".safetensors" in "".join(patterns) and not any(file.path.endswith(".safetensors") for file in chosen):
        pickles = [file.path for file in listed if file.path.endswith((".bin", ".ckpt", ".pt"))]
        only = f", only pickles ({pickles[0]}, ...)" if pickles else ""
        raise ValueError(
            f"revision {commit} has no safetensors of the kind wanted{only}. Pickles are not fetched here; docs/weights.md says how to "
            "convert them"
        )
    blobs = hub_cache() / f"models--{repo.replace('/', '--')}" / "blobs"
    for file in chosen:
        if getattr(file, "lfs", None) is not None:
            _large(api, repo, str(commit), file, blobs, say)
    # by the branch's name too, so that the cache knows where it leads
    for asked in dict.fromkeys([commit, revision or "main"]):
        place = snapshot_download(
            repo, revision=asked, endpoint=endpoint, cache_dir=hub_cache(), allow_patterns=list(patterns),
            ignore_patterns=ignored,
        )  # fmt: skip
    # The library keeps a list of all that the repository has, and would call a snapshot without pickles incomplete.
    (blobs.parent / "trees" / f"{commit}.json").unlink(missing_ok=True)
    return Path(place)


def _wanted(path: str, patterns: Sequence[str], ignored: Sequence[str]) -> bool:
    return any(fnmatch(path, p) for p in patterns) and not any(fnmatch(path, p) for p in ignored)


def _large(api: HfApi, repo: str, commit: str, file: Any, blobs: Path, say: Callable[[str], None]) -> None:
    """One large file, from where an earlier try left it, put among the blobs of the cache under its digest."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    digest, size = file.lfs.sha256, file.lfs.size
    blob = blobs / digest
    if blob.is_file():
        return
    blobs.mkdir(parents=True, exist_ok=True)
    part = blobs / f"{digest}.palimpsest.part"
    with open(part, "ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # another download of the same file is waited for
        if blob.is_file():
            part.unlink(missing_ok=True)
            return
        before = handle.seek(0, os.SEEK_END)
        if before > size:
            handle.truncate(0)
            before = 0
        say(
            f"{repo}: {file.path}, {size / 1e6:.1f} MB"
            + (f", going on at {before / 1e6:.1f} MB" if before else "")
        )
        url = hf_hub_url(repo, file.path, revision=commit, endpoint=api.endpoint)
        http_get(
            url, handle, resume_size=before, expected_size=size, headers=build_hf_headers(), displayed_filename=file.path
        )  # fmt: skip
        handle.flush()
        os.fsync(handle.fileno())
        if _sha256(part) != digest:
            part.unlink()
            raise Broken(f"{file.path} is not what the hub states (SHA-256 {digest}); it was thrown away")
        os.replace(part, blob)


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
