"""Whether results can be shared: DVC's remote, its cache, and its locks."""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from palimpsest.findings import FAIL, OK, WARN, Check, size

PATIENCE = 4  # seconds to wait for a remote
LOOK = 3.0  # seconds to add up a cache
DEFAULT_LINKS = "reflink,copy"
FIRST = "dvc remote add --default NAME URL (a folder, s3://bucket/path, ...; see docs/share.md)"


def configuration(root: Path) -> Mapping[str, Any] | str:
    """DVC's settings, those of the machine and of the user included; a sentence when there are none or they are wrong."""
    folder = root / ".dvc"
    if not folder.is_dir():
        return "this folder is not tracked by DVC"
    try:
        from dvc.config import Config

        loaded: Mapping[str, Any] = Config(dvc_dir=str(folder.resolve()), validate=True)
    except Exception as error:  # whatever is wrong with the settings, it is theirs
        return f"DVC cannot read its settings: {error}"
    return loaded


def sharing(root: Path) -> Iterator[Check]:
    """Remote, cache and locks of the project in `root`."""
    settings = configuration(root)
    if isinstance(settings, str):
        yield Check(WARN, "dvc", settings, "git checkout -- .dvc, or `dvc init`")
        return
    yield from remote(settings)
    yield from cache(settings, root)
    yield from locks(root)


# --- remote -----------------------------------------------------------------------------------------------------------------------


def remote(settings: Mapping[str, Any]) -> Iterator[Check]:
    """Whether there is a default remote, and whether it can be written to."""
    name = settings.get("core", {}).get("remote")
    known = settings.get("remote", {})
    if not name:
        others = f" (there are {', '.join(known)})" if known else ""
        remedy = f"dvc remote default {next(iter(known))}" if known else FIRST
        yield Check(WARN, "remote", f"no default remote{others}; results can be made, not shared", remedy)
        return
    if name not in known:
        yield Check(WARN, "remote", f"the default remote {name!r} is not configured", FIRST)
        return
    url = str(known[name]["url"])
    scheme = urlsplit(url).scheme
    if scheme in ("", "file"):
        problem = _folder_problem(Path(url.removeprefix("file://")))
    elif scheme == "s3":
        problem = _s3_problem(url, known[name])
    else:
        yield Check(OK, "remote", f"{name} = {url}; not tried here, `dvc status --cloud` does")
        return
    if problem:
        yield Check(
            WARN,
            "remote",
            f"{name} = {url}: {problem}",
            f"dvc remote modify {name} ..., or `dvc remote list`",
        )
    else:
        yield Check(OK, "remote", f"{name} = {url}, can be written to")


def _folder_problem(folder: Path) -> str:
    """Why a folder cannot be a remote; empty when it can. DVC makes a missing one at the first push."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is not a folder"
    if place != folder and place != folder.parent:
        return f"neither the folder nor {folder.parent} exists (is a disk not mounted?)"
    probe = place / f".palimpsest-doctor-{uuid.uuid4().hex}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"cannot be written to ({error.strerror})"
    return ""


def _s3_problem(url: str, options: Mapping[str, Any]) -> str:
    """Why a bucket cannot be a remote; empty when an object could be put there and deleted again."""
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    parts = urlsplit(url)
    try:
        client = botocore.session.Session(profile=options.get("profile")).create_client(
            "s3",
            region_name=options.get("region"),
            endpoint_url=options.get("endpointurl"),
            use_ssl=options.get("use_ssl", True),
            aws_access_key_id=options.get("access_key_id"),
            aws_secret_access_key=options.get("secret_access_key"),
            aws_session_token=options.get("session_token"),
            config=Config(connect_timeout=PATIENCE, read_timeout=PATIENCE, retries={"total_max_attempts": 1}),
        )
        prefix = parts.path.strip("/")
        key = f"{prefix}/.palimpsest-doctor-{uuid.uuid4().hex}".lstrip("/")
        client.put_object(Bucket=parts.netloc, Key=key, Body=b"")
        client.delete_object(Bucket=parts.netloc, Key=key)
    except ClientError as error:
        return f"refused: {error.response['Error'].get('Message') or error}"
    except BotoCoreError as error:
        return f"cannot be reached: {error}"
    return ""


# --- cache ------------------------------------------------------------------------------------------------------------------------


def cache(settings: Mapping[str, Any], root: Path) -> Iterator[Check]:
    """Where shared files are kept, how the project links to them, and how large that is."""
    spec = settings.get("cache", {})
    folder = Path(spec.get("dir") or root / ".dvc" / "cache")
    links = spec.get("type") or DEFAULT_LINKS
    links = links if isinstance(links, str) else ",".join(links)
    if not folder.is_dir():
        if folder.exists():
            yield Check(FAIL, "cache", f"{folder} is not a folder", "dvc cache dir PATH")
        else:
            yield Check(
                OK, "cache", f"{folder} is made with the first `dvc add` or `dvc pull`; links: {links}"
            )
        return
    amount, whole = _weigh(folder)
    text = f"{folder}, {'' if whole else 'more than '}{size(amount)}, links: {links}"
    together = os.stat(folder).st_dev == os.stat(root).st_dev
    if not os.access(folder, os.W_OK):
        yield Check(WARN, "cache", f"{text}; it cannot be written to", "dvc cache dir --local PATH")
    elif not together and links.partition(",")[0] in ("hardlink", "reflink") and "symlink" not in links:
        remedy = "dvc config --local cache.type symlink, or `dvc cache dir --local PATH` on the project's file system"
        yield Check(WARN, "cache", f"{text}; on another file system, so every file is copied", remedy)
    else:
        yield Check(OK, "cache", f"{text}; on {'the same' if together else 'another'} file system")


def _weigh(folder: Path) -> tuple[int, bool]:
    """Bytes of the files below a folder, and whether there was time to look at all of them."""
    until, total, stack = time.monotonic() + LOOK, 0, [folder]
    while stack:
        if time.monotonic() > until:
            return total, False
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total, True


# --- locks ------------------------------------------------------------------------------------------------------------------------


def locks(root: Path) -> Iterator[Check]:
    """Whether a DVC command holds the project, and what killed ones left behind."""
    import psutil

    place = root / ".dvc" / "tmp"
    held = _holder(place / "lock")
    if held:
        yield Check(WARN, "dvc lock", f"a DVC command is at work ({held})", "wait for it before the next one")
        return
    busy: list[str] = []
    dead: list[str] = []
    for entry in _claims(place / "rwlock"):
        what = f"process {entry.get('pid')}: {entry.get('cmd')}"
        (busy if psutil.pid_exists(int(entry.get("pid", 0))) else dead).append(what)
    if busy:
        yield Check(
            WARN, "dvc lock", f"files are in use by {'; '.join(busy[:3])}", "wait for it before the next one"
        )
    elif dead:
        found = f"claims of DVC commands that are gone: {'; '.join(dead[:3])}"
        yield Check(
            WARN, "dvc lock", found, f"rm {place / 'rwlock'}, or leave it: DVC skips claims of dead processes"
        )
    else:
        yield Check(OK, "dvc lock", "free")


def _holder(lock: Path) -> str:
    """Who holds a lock file of the kernel's kind; empty when nobody does, whatever the file says."""
    try:
        with open(lock, encoding="utf-8", errors="replace") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return f"process {handle.read().strip() or 'unknown'}"
            fcntl.flock(handle, fcntl.LOCK_UN)
    except OSError:
        pass
    return ""


def _claims(path: Path) -> list[dict[str, Any]]:
    """All readers and writers named in DVC's table of files in use."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        found = list(table.get("write", {}).values())
        for readers in table.get("read", {}).values():
            found += readers
        return [entry for entry in found if isinstance(entry, dict) and entry]
    except (OSError, ValueError, AttributeError):
        return []
