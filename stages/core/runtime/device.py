"""Devices, precision and threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Literal

from stages.core.errors import EnvironmentFault, UsageError

Precision = Literal["fp32", "bf16", "fp16"]


def resolve_device(name: str) -> str:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` into a torch device string.

    Raises:
        UsageError: not a device name.
        EnvironmentFault: the device is not there.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"'{name}' is not a device", where="--device", hint="use auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(name.partition(":")[2]) if ":" in name else _own_gpu(count)
        if index >= count:
            raise EnvironmentFault(
                f"no CUDA device {index}: this machine shows {count}",
                where="--device",
                hint="use --device cpu, or check nvidia-smi and the torch build (weaksam doctor)",
            )
        return f"cuda:{index}"
    return str(device)


def _own_gpu(count: int) -> int:
    """Return the index of this process's GPU on its node; the caller refuses indices that do not exist."""
    from stages.core.runtime.processes import launch_facts

    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if count == 1 and "SLURM_PROCID" in os.environ and shown and "," not in shown:
        return 0  # SLURM shows each task its own GPU only, under the number 0
    return launch_facts(os.environ).local_rank


def resolve_precision(name: str, device: str) -> Precision:
    """Turn ``auto`` into bf16 on a CUDA device that has it and into fp32 elsewhere; check any other name.

    Raises:
        UsageError: not a precision, or not one of this device.
    """
    import torch

    if name == "auto":
        return "bf16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "fp32"
    if name not in ("fp32", "bf16", "fp16"):
        raise UsageError(
            f"'{name}' is not a precision", where="--precision", hint="use auto, fp32, bf16 or fp16"
        )
    if name == "fp16" and not device.startswith("cuda"):
        raise UsageError("fp16 needs a CUDA device", where="--precision", hint="use fp32 or bf16 on a CPU")
    return name  # type: ignore[return-value]


@contextlib.contextmanager
def autocast(device: str, precision: Precision) -> Iterator[None]:
    """Run a forward pass in mixed precision; does nothing in fp32."""
    import torch

    if precision == "fp32":
        yield
        return
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    with torch.autocast(device.split(":")[0], dtype=dtype):
        yield


def available_cores() -> int:
    """Return the number of cores this process may use: SLURM's grant, else the affinity mask."""
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if granted.isdigit() and int(granted) > 0:
        return int(granted)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Processes that torchrun starts on one node share its cores.
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run a block with a fixed number of CPU threads, so that results do not depend on the machine's."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def torch_threads_restored() -> Iterator[None]:
    """Let a block set the number of torch's CPU threads, and set it back: a program that calls us keeps its own."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory_mib(device: str, workers: int = 0) -> float:
    """Return the peak memory so far, MiB.

    On a GPU that of the CUDA allocator; else the resident memory of this process and of its workers, each counted with
    what the largest of them took. 0 on a CPU under Windows, where nothing in Python's library knows it.
    """
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    import sys

    try:
        import resource
    except ImportError:  # Windows
        return 0.0

    def peak(who: int) -> float:
        used: Any = resource.getrusage(who).ru_maxrss
        return float(used) / (2**20 if sys.platform == "darwin" else 2**10)

    return peak(resource.RUSAGE_SELF) + workers * peak(resource.RUSAGE_CHILDREN)
