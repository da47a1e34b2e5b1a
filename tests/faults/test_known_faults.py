"""Faults of the machine by their names, whatever library meets them; what is none stays a bug."""

from __future__ import annotations

import errno
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from stages.core.artifacts.files import disk_faults
from stages.core.errors import EnvironmentFault, ImageError, InputError, WeakSamError
from stages.core.faults import known_fault

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (MemoryError(), EnvironmentFault, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), EnvironmentFault, "GPU memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
            EnvironmentFault,
            "out of memory",
        ),
        (BrokenProcessPool("A process in the process pool was terminated abruptly"), EnvironmentFault, "worker"),
        (OSError(errno.ENOSPC, "No space left on device"), EnvironmentFault, "No space left"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            EnvironmentFault,
            "No space left",
        ),
        (
            OSError("Unable to synchronously open file (unable to lock file, errno = 37, error message = 'No locks')"),
            EnvironmentFault,
            "No locks available",
        ),
        (RuntimeError("The server socket has failed to listen: EADDRINUSE"), EnvironmentFault, "port is in use"),
        (RuntimeError("[1] Connection closed by peer [127.0.0.1]:4711"), EnvironmentFault, "another process"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), EnvironmentFault, "no permission"),
        (OSError(errno.EROFS, "Read-only file system", "/cache/x"), EnvironmentFault, "/cache/x"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "b"), InputError, "b: cannot be used"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "c"), InputError, "links lead in a circle"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "d"), InputError, "shorter name"),
        (ValueError("embedded null byte"), InputError, "NUL"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), InputError, "no UTF-8"),
    ],
)  # fmt: skip
def test_known_fault__by_library(error: BaseException, kind: type[WeakSamError], message: str) -> None:
    fault = known_fault(error)
    assert type(fault) is kind
    assert message in str(fault)
    assert fault.hint


def test_known_fault__the_cause_counts() -> None:
    error = KeyError("state")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(known_fault(error), EnvironmentFault)


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("shapes do not fit"), ValueError("1 > 2"), OSError("?")]
)
def test_known_fault__bugs_stay_bugs(error: Exception) -> None:
    assert known_fault(error) is None


def test_known_fault__own_errors_stay_what_they_are() -> None:
    error = ImageError("truncated")
    assert known_fault(error) is error


def test_disk_faults__other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), disk_faults(Path("x")):
        raise ZeroDivisionError


WRITE_TOO_MUCH = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from stages.core.artifacts.table import ImageRows, TableSchema, gather, write_table
from stages.core.errors import EnvironmentFault
from stages.core.weights.checkpoints import save_state, save_weights

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
out = Path(sys.argv[1])
schema = TableSchema("toy", 1, {"x": "float64"}, {})
table = gather(schema, {"a": ImageRows({"x": np.random.default_rng(0).random(100_000)}, {})})
layer = torch.nn.Linear(300, 300)
for write in (
    lambda: write_table(out / "t.h5", schema, table),
    lambda: save_state(out / "s.pt", layer.state_dict()),
    lambda: save_weights(out / "w.safetensors", layer, {}),
):
    try:
        write()
    except EnvironmentFault as fault:
        print(fault.what)
print(sorted(path.name for path in out.iterdir()))
"""


def test_write__file_that_cannot_grow(tmp_path: Path) -> None:
    # As on a full disk: HDF5 would end the process, torch blames a position, safetensors has a type of its own.
    done = subprocess.run(
        [sys.executable, "-c", WRITE_TOO_MUCH, tmp_path], capture_output=True, text=True, cwd=ROOT, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *faults, left = done.stdout.splitlines()
    assert len(faults) == 3
    assert all(fault.startswith("cannot write (") for fault in faults)
    assert left == "[]", "nothing half-written stays"
