"""Several processes at work on one stage: started by torchrun or srun, joined by torch.distributed.

Every process runs the same code. Process 0 is the main one: it alone writes artifacts, logs, progress and metrics;
the others compute, read and wait. Without a launcher there is one process, and the functions here do nothing.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from stages.core.errors import EnvironmentFault, WeakSamError
from stages.core.faults import known_fault

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others, e.g. for the slowest part of map-style work."""
JOIN_TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others to come: nodes of a cluster do not start at the same moment."""
FIRST_PORT, PORTS = 20_000, 20_000


@dataclass(frozen=True)
class Launch:
    """Place of this process among those a launcher started.

    Attributes:
        rank: 0-based number over all nodes.
        world: Processes altogether.
        local_rank: 0-based number on this node; picks the GPU.
        address: Host of process 0, or None where the launcher has set it already.
        port: Port on that host, or None likewise.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    address: str | None = None
    port: int | None = None


def launch_facts(environment: Mapping[str, str]) -> Launch:
    """Read the environment of torchrun or of an srun step with several tasks; anything else is a single process.

    The variables of a batch script (``SLURM_NTASKS``) are not enough: they are there without srun, too.

    Raises:
        EnvironmentFault: a variable is not a number, or a rank that does not exist.
    """
    try:
        if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(environment):
            return _checked(
                Launch(
                    int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment["LOCAL_RANK"])
                )
            )
        world = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
        if world < 2 or "SLURM_PROCID" not in environment:
            return Launch()
        nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "localhost"))
        job = int(environment.get("SLURM_JOB_ID", "0")) + int(environment.get("SLURM_STEP_ID", "0"))
        return _checked(
            Launch(
                int(environment["SLURM_PROCID"]),
                world,
                int(environment.get("SLURM_LOCALID", "0")),
                environment.get("MASTER_ADDR") or first_host(nodes),
                int(environment.get("MASTER_PORT") or FIRST_PORT + job % PORTS),
            )
        )
    except (ValueError, TypeError) as error:
        raise EnvironmentFault(
            f"the launcher's environment cannot be read ({error})",
            where="RANK, WORLD_SIZE, SLURM_*",
            hint="start with torchrun or srun, or unset these variables",
        ) from error


def _checked(launch: Launch) -> Launch:
    if not (0 <= launch.rank < launch.world and launch.local_rank >= 0):
        raise ValueError(f"process {launch.rank} of {launch.world}")
    return launch


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list: ``gpu03`` of ``gpu[03-05,9],cpu1``."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?", nodes)
    return nodes if match is None else match[1] + (match[2] or "")


def join(device: str) -> None:
    """Join the other processes of the launch, if there are any; calling it again does nothing.

    Control messages go through gloo on the CPU; on GPUs gradients go through NCCL.
    """
    launch = launch_facts(os.environ)
    if launch.world < 2 or dist.is_initialized():
        return
    address = launch.address or os.environ.get("MASTER_ADDR", "localhost")
    port = launch.port or int(os.environ.get("MASTER_PORT", str(FIRST_PORT)))
    os.environ.update({"MASTER_ADDR": address, "MASTER_PORT": str(port)})
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    log = logging.getLogger("weaksam")
    log.info("process %d of %d: waiting for the others at %s:%d", launch.rank, launch.world, address, port)
    try:
        store, rank_, world_ = next(
            rendezvous("env://", rank=launch.rank, world_size=launch.world, timeout=JOIN_TIMEOUT)
        )
        store.set_timeout(JOIN_TIMEOUT)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=PrefixStore("weaksam", store),
            timeout=TIMEOUT,
            rank=rank_,
            world_size=world_,
        )
        store.set_timeout(TIMEOUT)
    except (RuntimeError, ValueError) as error:
        text = str(error)
        if "EADDRINUSE" in text or "already in use" in text:
            hint = "another program uses the port: set MASTER_PORT to another number"
        else:
            hint = "see the messages of the other processes; if there are none, unset RANK, WORLD_SIZE and LOCAL_RANK"
        first_line = next(iter(text.splitlines()), "")
        raise EnvironmentFault(
            f"process {launch.rank} of {launch.world} cannot join the others ({first_line})",
            where=f"{address}:{port}",
            hint=hint,
        ) from error


def leave() -> None:
    """Leave the process group, at the end of the program."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is the main process, which writes."""
    return rank() == 0


def wait_for_all() -> None:
    """Wait until every process has reached this call."""
    total(torch.zeros(1))


def total(values: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place; a CPU tensor goes through gloo."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process, so that all of them decide alike."""
    return bool(total(torch.tensor([float(flag)])) > 0)


def gather(value: T) -> list[T]:
    """Return the (picklable) values of all processes, by rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return cast("list[T]", values)


def from_main(function: Callable[[], T]) -> T:
    """Run a function on the main process alone; return its value, or raise its WeakSamError, in every process."""
    if world() == 1:
        return function()
    result: list[Any] = [None, None]  # value, error
    bug: Exception | None = None
    if is_main():
        try:
            result[0] = function()
        except WeakSamError as error:
            result[1] = error
        except Exception as error:  # the others must not wait for a value that never comes
            bug = error
            result[1] = known_fault(error) or WeakSamError(f"the main process failed ({error})")
    dist.broadcast_object_list(result, src=0)
    if bug is not None:
        raise bug
    if result[1] is not None:
        raise result[1]
    return cast("T", result[0])


def own_items(items: Sequence[T]) -> list[T]:
    """Return every world-th item, beginning with this process's rank."""
    return list(items[rank() :: world()])
