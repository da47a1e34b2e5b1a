"""Who works in an output folder, and for how long: a lock file with its owner's name on any file system, NFS included.

A lock is made by linking a finished file to its name, which either works for one process alone or for none. Its owner
touches it while it works; a lock whose owner has ended, or has not touched it for a while, is taken over. What each
attempt at a run took is one small file in the folder of its state.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stages.core.artifacts.files import disk_faults, read_json, write_json
from stages.core.errors import InputError, OutputExistsError

LOCK_PREFIX = ".owner-"
ATTEMPT_PREFIX = "attempt-"
TOUCH_SECONDS = 15.0
SILENT_SECONDS = 150.0
"""An owner on another machine that has not touched its lock for so long has ended."""
ENTRY_SECONDS = 120.0
"""How long a process waits for another that is entering the same folder."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Owner:
    """A process that works in an output folder.

    Attributes:
        host: Name of its machine.
        machine: What tells its process numbers apart from those of another machine or container.
        pid: Its number there.
        born: When that process began, in the clock ticks of the machine; "" where unknown.
        job: SLURM's name of the job or array task, or "".
        made_by: Digest of what its run is made with.
        shard: (index, count) of the parts it takes.
        since: When it began to work, seconds since 1970.
    """

    host: str
    machine: str
    pid: int
    born: str
    job: str
    made_by: str = ""
    shard: tuple[int, int] = (0, 1)
    since: float = field(default_factory=time.time)

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}{job}, since {began}"


def this_process(made_by: str = "", shard: tuple[int, int] = (0, 1)) -> Owner:
    """Return this process as an owner."""
    pid = os.getpid()
    return Owner(
        socket.gethostname(), _machine(), pid, _born(pid) or "", _slurm_job(os.environ), made_by, shard
    )


def _slurm_job(environment: os._Environ[str]) -> str:
    job, array = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_ARRAY_JOB_ID", "")
    return f"{array}_{environment.get('SLURM_ARRAY_TASK_ID', '')}" if array else job


def _machine() -> str:
    """Return what process numbers are unique in: this boot of this machine, and the container."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        facts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(facts)


def _born(pid: int) -> str | None:
    """Return when a process of this machine began; "" where the system does not tell, None if it is not there."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = status.rpartition(")")[2].split()  # the name before it may hold anything
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""


class Lock:
    """A lock that this process holds, touched until it is released.

    Attributes:
        path: The lock file.
        owner: This process.
    """

    def __init__(self, path: Path, owner: Owner) -> None:
        self.path, self.owner = path, owner
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True, name="owner of the output folder")
        self._thread.start()

    def held(self) -> bool:
        """Return whether the lock is still this process's."""
        return read_owner(self.path) == self.owner

    def release(self) -> None:
        """Give the lock up; does nothing where another has taken it over."""
        self._released.set()
        self._thread.join(TOUCH_SECONDS)
        with contextlib.suppress(OSError):
            if self.held():
                self.path.unlink()

    def _touch(self) -> None:
        while not self._released.wait(TOUCH_SECONDS):
            with contextlib.suppress(OSError):
                if self.held():
                    os.utime(self.path)


def take(path: Path, owner: Owner) -> Lock | Owner:
    """Take a lock, over from an owner that has ended if need be.

    Returns:
        The lock, or the owner that holds it.
    """
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            own.write_text(json.dumps(asdict(owner)), encoding="utf-8")
            while not _link(own, path):
                holder = read_owner(path)
                if _ended(path, holder, owner, own.stat().st_mtime):
                    _remove(path, holder)
                elif holder is not None:
                    return holder
                else:  # released, or written at this moment
                    time.sleep(0.05)
            return Lock(path, owner)
        finally:
            own.unlink(missing_ok=True)


@contextlib.contextmanager
def entered(out: Path) -> Iterator[None]:
    """Enter an output folder, which one process does at a time, to look at what is there and decide.

    Raises:
        OutputExistsError: another process does not leave the entry.
    """
    end = time.monotonic() + ENTRY_SECONDS
    while isinstance(lock := take(out / f"{LOCK_PREFIX}entry", this_process()), Owner):
        if time.monotonic() > end:
            raise busy(out, lock)
        time.sleep(random.uniform(0.02, 0.2))
    try:
        yield
    finally:
        lock.release()


def owners(out: Path) -> dict[Path, Owner]:
    """Return who works in a folder, by lock; call it inside :func:`entered`, which alone makes such locks."""
    found = {}
    for path in sorted(out.glob(f"{LOCK_PREFIX}[0-9]*-of-[0-9]*")):
        if path.suffix:
            continue  # a lock in the making
        owner = read_owner(path)
        if owner is not None:
            found[path] = owner
    return found


def lock_path(out: Path, shard: tuple[int, int]) -> Path:
    """Return the lock of a shard of the work in a folder."""
    return out / f"{LOCK_PREFIX}{shard[0]}-of-{shard[1]}"


def ended(path: Path, owner: Owner) -> bool:
    """Return whether the owner of a lock works no more, by the clock of the file system."""
    probe = path.with_name(f"{LOCK_PREFIX}clock.{uuid.uuid4().hex}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
    return _ended(path, owner, this_process(), now)


def busy(out: Path, owner: Owner) -> OutputExistsError:
    """Return the refusal to work where another process does."""
    return OutputExistsError(
        f"another process works here ({owner})",
        where=out,
        hint="wait for it, or give another --out",
    )


def read_owner(path: Path) -> Owner | None:
    """Return who holds a lock; None if nobody does, or if the lock is damaged."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        return Owner(**loaded | {"shard": (int(loaded["shard"][0]), int(loaded["shard"][1]))})
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None


def _link(own: Path, path: Path) -> bool:
    """Give a finished file the name of the lock, unless there is one."""
    try:
        os.link(own, path)
    except FileExistsError:
        # NFS may have made the link and lost its answer.
        return own.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create(own, path)
    return True


def _create(own: Path, path: Path) -> bool:
    """Do the same on a file system without hard links."""
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(own.read_text(encoding="utf-8"))
    except FileExistsError:
        return False
    return True


def _ended(path: Path, holder: Owner | None, own: Owner, now: float) -> bool:
    """Return whether a lock may be taken over; `now` is the time of the file system."""
    try:
        silent = now - path.stat().st_mtime > SILENT_SECONDS
    except OSError:
        return False  # released by now
    if holder is None:
        return silent  # damaged
    if holder.machine == own.machine:
        return _born(holder.pid) != holder.born
    # A job that runs again: SLURM has ended its first run for certain.
    return silent or (holder.job != "" and holder.job == own.job)


def _remove(path: Path, holder: Owner | None) -> None:
    """Remove the lock of an owner that has ended; of two processes that try, one does."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if read_owner(aside) != holder:  # a third process was quicker, and this is its lock
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


@dataclass(frozen=True)
class Attempt:
    """A time of work on a run, which ended or was ended.

    Attributes:
        began: Seconds since 1970.
        seconds: How long it worked.
        peak_memory_mib: Its peak memory; 0 where it was killed.
    """

    began: float
    seconds: float
    peak_memory_mib: float = 0.0


def note_attempt(state: Path, attempt: Attempt) -> None:
    """Remember an attempt, if the folder of the state is still there."""
    if state.is_dir():
        write_json(state / f"{ATTEMPT_PREFIX}{uuid.uuid4().hex}.json", asdict(attempt))


def all_attempts(state: Path, now: Attempt) -> Attempt:
    """Return what this attempt and those before it make together: the first beginning, the sum, the highest peak."""
    attempts = [now]
    for path in state.glob(f"{ATTEMPT_PREFIX}*.json"):
        try:
            loaded = read_json(path)
            attempts.append(Attempt(*(float(loaded[name]) for name in asdict(now))))
        except (InputError, TypeError, KeyError, ValueError):
            continue  # half of an attempt is no reason to lose the run
    return Attempt(
        min(one.began for one in attempts),
        sum(max(0.0, one.seconds) for one in attempts),
        max(one.peak_memory_mib for one in attempts),
    )


def since(began: float) -> float:
    """Return the seconds from a time to now."""
    return max(0.0, time.time() - began)
