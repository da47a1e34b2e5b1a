"""Fetching weights: one process at a time, resumable, and never a half or wrong file under the final name.

The bytes go into ``<file>.part``; beside it ``<file>.part.json`` remembers the address and the server's
validator (ETag or Last-Modified). A later attempt asks for the rest with ``Range`` and ``If-Range``, so that a
file that has changed meanwhile starts from scratch. Size and checksum are compared before the file takes its name.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stages.core.errors import EnvironmentFault
from stages.core.weights.cache import HUB_FILES, cached, file_path, offline
from stages.core.weights.checks import Mismatch, looks_like_markup, published_mismatch
from stages.core.weights.table import Weights

CHUNK: Final = 2**20
TIMEOUT: Final = 20.0
"""Seconds without a byte after which a connection counts as dead."""
SLOWEST: Final = 4096
"""Bytes per second, over as many seconds, below which it does, too."""
ATTEMPTS: Final = 4
"""Connections in a row that may break without bringing anything new."""

ProgressFn = Callable[[int, int | None], None]
"""Told bytes done and bytes in all (None if the server does not say)."""


def _silent(done: int, total: int | None) -> None:
    pass


@dataclass(frozen=True)
class Fetched:
    """What became of a request: where the weights are, and whether anything was fetched."""

    path: Path
    fetched: bool


def fetch(
    entry: Weights, *, no_network: bool = False, force: bool = False, progress: ProgressFn = _silent,
    pause: float = 1.0,
) -> Fetched:  # fmt: skip
    """Make sure that the weights of an entry are in the cache.

    Args:
        entry: What to fetch.
        no_network: Fail rather than use the network; so does ``$WEAKSAM_OFFLINE``.
        force: Fetch again, even though they are there.
        progress: Told how far it is.
        pause: Seconds before the first repetition; doubles with each.

    Raises:
        EnvironmentFault: absent and offline, the network or the server fails, what arrives is not what the
            table says, or the cache cannot be written.
    """
    found = None if force and not entry.shipped else cached(entry)
    if found is not None:
        return Fetched(found, fetched=False)
    if no_network or offline(hub=bool(entry.hub)):
        raise EnvironmentFault(
            f"the weights of {entry.name} are not there, and the network is not to be used",
            where=entry.hub or str(file_path(entry)),
            hint="run once without --offline (and WEAKSAM_OFFLINE, HF_HUB_OFFLINE), or copy the cache from "
            "a machine that has them",
        )
    if entry.hub:
        return Fetched(_fetch_snapshot(entry, force), fetched=True)
    target = file_path(entry)
    with _one_at_a_time(target):
        if not force and target.is_file():  # another process was faster
            return Fetched(target, fetched=False)
        _fetch_file(entry, target, progress, pause)
    return Fetched(target, fetched=True)


@contextlib.contextmanager
def _one_at_a_time(target: Path) -> Iterator[None]:
    from filelock import FileLock

    with _cache_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(target) + ".lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _cache_faults(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        known = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
        if error.errno not in known:
            raise
        raise EnvironmentFault(
            f"the weights cache cannot be written ({os.strerror(error.errno or 0)})",
            where=target.parent,
            hint="free some space, or set WEAKSAM_CACHE to a folder that has it",
        ) from error


def _fetch_file(entry: Weights, target: Path, progress: ProgressFn, pause: float) -> None:
    part = target.with_name(target.name + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _one_connection(entry, part, progress)
            break
        except (OSError, http.client.HTTPException) as error:
            # What arrived stays for the next attempt; only attempts that bring nothing are counted.
            failures = failures + 1 if _size(part) <= before else 1
            if failures >= ATTEMPTS or not _may_pass(error):
                raise _network_fault(entry, error, _size(part)) from error
            time.sleep(pause * 2 ** (failures - 1))
    problem = published_mismatch(entry, part)
    if problem is not None:
        _discard(part)
        raise _wrong_content(entry, problem)
    with _cache_faults(target):
        part.replace(target)
        _memo(part).unlink(missing_ok=True)


def _one_connection(entry: Weights, part: Path, progress: ProgressFn) -> None:
    """Append what is missing to ``part``; returns only when the body is complete."""
    have, validator = _resumable(entry, part)
    request = urllib.request.Request(entry.url, headers={"User-Agent": "weaksam"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)
    with _opened(request, part) as response:
        if response.status != http.client.PARTIAL_CONTENT:
            have = 0  # the whole file comes: it has changed, or the server cannot resume
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None and length.isdigit() else None
        _refuse_web_page(entry, response)
        _require_room(part, None if total is None else total - have)
        done, chunk = have, response.read1(CHUNK)
        if not have and looks_like_markup(chunk[:512]):
            raise _wrong_content(entry, Mismatch("a web page came instead of weights"))
        _remember(entry, part, response.headers)
        with _cache_faults(part), part.open("r+b" if have else "wb") as stream:
            stream.seek(have)
            stream.truncate()
            pace = _Pace(done)
            while chunk:
                stream.write(chunk)
                done += len(chunk)
                if entry.size is not None and done > entry.size:
                    break
                pace.check(done)
                progress(done, total)
                chunk = response.read1(CHUNK)
    if entry.size is not None and done > entry.size:
        _discard(part)
        raise _wrong_content(entry, Mismatch(f"too long: more than the {entry.size:,} bytes expected"))
    if total is not None and done < total:
        raise http.client.IncompleteRead(b"", total - done)


class _Pace:
    """Notices a server that sends a few bytes now and then, for ever."""

    def __init__(self, done: int) -> None:
        self._done, self._since = done, time.monotonic()

    def check(self, done: int) -> None:
        """Compare with what had come a while ago.

        Raises:
            TimeoutError: too little has come since.
        """
        seconds = time.monotonic() - self._since
        if seconds < TIMEOUT:
            return
        if done - self._done < SLOWEST * seconds:
            raise TimeoutError(f"only {(done - self._done) / seconds:.0f} bytes per second came")
        self._done, self._since = done, time.monotonic()


@contextlib.contextmanager
def _opened(request: urllib.request.Request, part: Path) -> Iterator[Any]:
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            # The part is as long as the file, or longer: not a beginning of it. Anew, next time.
            _discard(part)
            raise ConnectionError("the server refuses to resume") from error
        raise
    with response:
        yield response


def _refuse_web_page(entry: Weights, response: Any) -> None:
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise _wrong_content(entry, Mismatch("a web page came instead of weights"))


def _resumable(entry: Weights, part: Path) -> tuple[int, str]:
    """Bytes to keep, and the validator they belong to; (0, '') to start from scratch."""
    try:
        memo = json.loads(_memo(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0, ""
    have = _size(part)
    if have and isinstance(memo, dict) and memo.get("url") == entry.url and memo.get("validator"):
        return have, str(memo["validator"])
    return 0, ""


def _remember(entry: Weights, part: Path, headers: Any) -> None:
    tag = headers.get("ETag", "")
    # A weak tag names an equivalent, not the same bytes: nothing can be appended to it.
    validator = headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
    with _cache_faults(part):
        _memo(part).write_text(json.dumps({"url": entry.url, "validator": validator}), encoding="utf-8")


def _memo(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _memo(part).unlink(missing_ok=True)


def _require_room(part: Path, more: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if more is not None and more > free:
        raise EnvironmentFault(
            f"{more / 1e6:.0f} MB are to come, {free / 1e6:.0f} MB are free",
            where=part.parent,
            hint="free some space, or set WEAKSAM_CACHE to a folder that has it",
        )


def _may_pass(error: Exception) -> bool:
    """Whether trying again may help: a broken connection or a busy server, not a wrong address."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code == 429 or error.code >= 500
    return True


def _network_fault(entry: Weights, error: Exception, have: int) -> EnvironmentFault:
    reason = f"HTTP {error.code} {error.reason}" if isinstance(error, urllib.error.HTTPError) else str(error)
    if isinstance(error, http.client.IncompleteRead):
        reason = "the connection ends before the file does"
    kept = f" ({have / 1e6:.1f} MB are kept)" if have else ""
    return EnvironmentFault(
        f"{entry.name} cannot be fetched: {reason or type(error).__name__}{kept}",
        where=entry.url,
        hint="try again, it goes on where it stopped; or name a mirror with WEAKSAM_WEIGHTS_URL, or copy "
        f"the file to {file_path(entry)}",
    )


def _wrong_content(entry: Weights, problem: Mismatch) -> EnvironmentFault:
    return EnvironmentFault(
        f"{entry.name}: {problem.what}; it was not kept",
        where=entry.url,
        hint="a proxy, a login page or a wrong mirror may be in between: open the address in a browser, or "
        f"copy the file to {file_path(entry)} by hand",
    )


def _fetch_snapshot(entry: Weights, force: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        # Resume, lock and checksums are the library's.
        found = snapshot_download(
            entry.hub, revision=entry.revision, allow_patterns=list(HUB_FILES), force_download=force
        )
    except Exception as error:  # the library and its HTTP client raise many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise EnvironmentFault(
            f"{entry.name} cannot be fetched from the hub: {reason}",
            where=f"{entry.hub}@{entry.revision}",
            hint="try again with a network connection; gated or private models need `hf auth login`",
        ) from error
    folder = Path(found)
    if not any(folder.glob("*.safetensors")):
        raise EnvironmentFault(
            f"{entry.name}: the repository holds no .safetensors file", where=entry.hub,
            hint="name another repository or revision in the table (WEAKSAM_WEIGHTS)",
        )  # fmt: skip
    return folder
