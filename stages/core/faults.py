"""What a machine can fail at, recognized in the exceptions of every library: disk, memory, processes, network.

torch, safetensors, HDF5 and the standard library each raise an exception of their own for a full disk, for memory that
ran out and for a port in use. Here they become :class:`EnvironmentFault` with a hint; paths that cannot be opened
become :class:`InputError`. What is left is a bug.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from stages.core.errors import EnvironmentFault, InputError, WeakSamError

ELSEWHERE = "write elsewhere with --run or --out"
HINTS = {
    errno.ENOSPC: f"free some space, or {ELSEWHERE}, then --resume",
    errno.EDQUOT: f"free some of your quota, or {ELSEWHERE}, then --resume",
    errno.EFBIG: f"raise the limit on the size of a file (ulimit -f), or {ELSEWHERE}, then --resume",
    errno.EROFS: f"{ELSEWHERE}; caches are moved with WEAKSAM_CACHE, HF_HOME and TORCH_HOME",
    errno.EACCES: f"{ELSEWHERE}, or ask for permission",
    errno.EPERM: f"{ELSEWHERE}, or ask for permission",
    errno.EIO: "the disk or its network fails: check it, then --resume",
    errno.ESTALE: "the network file system has lost the file: mount it again, then --resume",
    errno.ENOLCK: "the file system has no locks: set HDF5_USE_FILE_LOCKING=FALSE",
    errno.ENOSYS: "the file system has no locks: set HDF5_USE_FILE_LOCKING=FALSE",
    errno.ENOTSUP: "the file system has no locks: set HDF5_USE_FILE_LOCKING=FALSE",
    errno.EAGAIN: "another process has the file open for writing: wait for it, or set HDF5_USE_FILE_LOCKING=FALSE",
    errno.ENOMEM: "fewer --workers, a smaller batch or image size",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer --workers",
    errno.ENFILE: "the machine has too many open files: end some programs",
    errno.ETXTBSY: "another program uses the file: wait for it",
    errno.EBUSY: "another program uses the file: wait for it",
    errno.ETIMEDOUT: "the disk or the network does not respond: try again with --resume",
    errno.ECONNREFUSED: "the other side does not respond: check the network",
    errno.ECONNRESET: "the other side has ended: see its messages, then --resume",
    errno.EADDRINUSE: "another program uses this port: set MASTER_PORT to another number",
    errno.ENETUNREACH: "check the network",
    errno.EHOSTUNREACH: "check the network",
    errno.EPIPE: "what reads the output has ended",
}
"""What to do about an error of the operating system that is the machine's, by its number."""

UNUSABLE_PATHS = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file: check it",
    errno.EISDIR: "a file is expected, this is a folder",
    errno.ELOOP: "its links lead in a circle",
    errno.ENAMETOOLONG: "use a shorter name or path",
    errno.EINVAL: "check the path",
    errno.ENXIO: "a file is expected",
    errno.ENODEV: "a file is expected",
}
"""What to do about a path that cannot be used, by the number of the error."""

MEMORY_HINT = "fewer --workers, a smaller batch or image size"
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|bad_alloc|Insufficient memory|"
    r"STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_OTHER_PROCESS = re.compile(
    r"Connection (closed|reset) by peer|Timed out (waiting|after)|timed out (waiting|after)|Broken pipe|"
    r"NCCL (error|communicator)|Socket (closed|Timeout)|Application timeout|connectFullMesh|"
    r"[Ff]ailed to recv|Wait timeout|not all (clients|ranks)",
)
_GPU_UNUSABLE = re.compile(
    r"busy or unavailable|uncorrectable ECC|no kernel image|driver version is insufficient|"
    r"forward compatibility|unspecified launch failure|initialization error|NVIDIA driver|GPU is lost",
)
_NUMBER = re.compile(r"errno = (\d+)|\(os error (\d+)\)|\[Errno (\d+)\]")
_TORCH_WRITER = re.compile(r"PytorchStreamWriter|unexpected pos|iostream error")


def known_fault(error: BaseException, where: Path | None = None) -> WeakSamError | None:
    """Return what an exception of any library means to the user, or None if it can only be a bug.

    Args:
        error: Any exception; one of this project is returned as it is.
        where: The file or folder at work, where the exception names none.
    """
    for one in _with_causes(error):
        if isinstance(one, WeakSamError):
            return one
        found = _memory(one) or _process(one) or _network(one) or _system(one, where) or _name(one, where)
        if found is not None:
            return found
    return None


def write_fault(error: BaseException, where: Path) -> EnvironmentFault | None:
    """Return why a file cannot be written, or None if the machine is not to blame.

    torch's writer tells no reason; while it writes, the disk is to blame.
    """
    number = _error_number(error)
    if number is None and isinstance(error, RuntimeError) and _TORCH_WRITER.search(str(error)):
        number = errno.ENOSPC
    if number == errno.ENOTDIR:
        hint = "there is a file where a folder is needed: move it, or write elsewhere with --run or --out"
    elif number in HINTS:
        hint = HINTS[number]
    else:
        return None
    return EnvironmentFault(f"cannot write ({os.strerror(number)})", where=where, hint=hint)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those it was raised from, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


def _memory(error: BaseException) -> EnvironmentFault | None:
    text = str(error)
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError", "_ArrayMemoryError")
    if not (named or (isinstance(error, Exception) and _OUT_OF_MEMORY.search(text))):
        return None
    on_gpu = "CUDA" in text or "cuda" in text or "CUBLAS" in text
    place = "GPU memory" if on_gpu else "memory"
    detail = f" ({_first_line(text)})" if text else ""
    return EnvironmentFault(f"out of {place}{detail}", hint=MEMORY_HINT)


def _process(error: BaseException) -> EnvironmentFault | None:
    killed = type(error).__name__ == "BrokenProcessPool" or (
        isinstance(error, RuntimeError) and "worker" in str(error) and "exited unexpectedly" in str(error)
    )
    if not killed:
        return None
    return EnvironmentFault(
        "a worker process was killed, as the system does when memory runs out",
        hint="fewer --workers or more memory, then --resume",
    )


def _network(error: BaseException) -> EnvironmentFault | None:
    text, kind = str(error), type(error).__name__
    if not isinstance(error, RuntimeError):
        return None
    if "EADDRINUSE" in text or "ddress already in use" in text:
        return EnvironmentFault(
            f"a port is in use ({_first_line(text)})",
            where="MASTER_PORT",
            hint=HINTS[errno.EADDRINUSE],
        )
    if kind in ("DistNetworkError", "DistStoreError", "DistBackendError") or _OTHER_PROCESS.search(text):
        return EnvironmentFault(
            f"another process of this launch has ended or cannot be reached ({_first_line(text)})",
            hint="see the messages of the other processes, then --resume; without a launcher, unset RANK, WORLD_SIZE "
            "and LOCAL_RANK",
        )
    if _GPU_UNUSABLE.search(text):
        return EnvironmentFault(
            f"the GPU cannot be used ({_first_line(text)})",
            where="--device",
            hint="check nvidia-smi and `weaksam doctor`, or use --device cpu",
        )
    return None


def _system(error: BaseException, where: Path | None) -> WeakSamError | None:
    number = _error_number(error)
    if number is None:
        return None
    named = getattr(error, "filename", None)
    place = where if named is None else Path(os.fsdecode(named)) if isinstance(named, str | bytes) else where
    if number in HINTS:
        verb = "no permission" if number in (errno.EACCES, errno.EPERM) else "the machine refuses"
        return EnvironmentFault(f"{verb} ({os.strerror(number)})", where=place, hint=HINTS[number])
    if number in UNUSABLE_PATHS and place is not None:
        return InputError(f"cannot be used ({os.strerror(number)})", where=place, hint=UNUSABLE_PATHS[number])
    return None


def _name(error: BaseException, where: Path | None) -> InputError | None:
    """Names that no file can have, or that are no text."""
    if isinstance(error, ValueError) and str(error).startswith("embedded null"):
        return InputError("a path holds a NUL character", where=where, hint="check the names of files")
    if isinstance(error, UnicodeEncodeError) and "surrogates not allowed" in error.reason:
        return InputError(
            "a name holds bytes that are no UTF-8", where=where, hint="rename the file, e.g. with convmv"
        )
    return None


def _error_number(error: BaseException) -> int | None:
    """Return the number of an operating system's error; HDF5 and Rust libraries only write it into the text."""
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and isinstance(number, int):
        return number
    if isinstance(error, OSError | RuntimeError) or type(error).__name__ == "SafetensorError":
        match = _NUMBER.search(str(error))
        if match is not None:
            return int(next(group for group in match.groups() if group))
    return None


def _first_line(text: str, most: int = 160) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= most else line[: most - 3] + "..."
