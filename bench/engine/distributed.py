"""One cell on several processes, of one machine or many: what they share, and how they find each other.

Each takes its share of every batch and of the samples to evaluate. Torch's wrapper averages gradients, so that global batch and
learning rate stay the recipe's. Batch norm sees each process's share. The first process leads: its batch norm statistics are
kept, and it alone writes.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bench.data import Split
from bench.errors import UserError
from methods.base import Batch

STEP_PATIENCE = timedelta(minutes=30)  # for another process within a training
IDLE_PATIENCE = timedelta(days=30)  # for the next cell


def rows_of(batch: Batch, part: int, parts: int) -> tuple[Batch, float]:
    """One of so many parts of a batch, as even as can be, and the weight that makes their mean the mean over the batch."""
    each, longer = divmod(len(batch.target), parts)  # the first `longer` parts have one row more
    start = part * each + min(part, longer)
    rows = each + (part < longer)
    where = slice(start, start + rows)
    shared = {
        name: value[where]
        for name in ("image", "target", "index", "partner", "soft")
        if (value := getattr(batch, name)) is not None
    }
    return batch._replace(**shared), rows * parts / len(batch.target)


@dataclass(frozen=True)
class Team:
    """The processes that train a cell together, as one of them sees it. A team of one sends nothing.

    Attributes:
        rank: of this process, from 0; 0 leads.
        local_rank: among the processes of its machine.
        control: a group over the CPU, for what is not part of a training.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    control: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device for this process: a GPU of its own, where several processes work on one machine."""
        if self.size == 1 or name == "cpu" or not torch.cuda.is_available():
            return name
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"

    def share(self, batch: Batch) -> tuple[Batch, float]:
        """This process's rows of a batch, and the weight that makes the mean over processes the mean over the batch."""
        return (batch, 1.0) if self.size == 1 else rows_of(batch, self.rank, self.size)

    def part(self, split: Split) -> Split:
        """This process's samples of a split to evaluate; each sample is in one part."""
        if self.size == 1:
            return split
        mine = torch.arange(self.rank, len(split.targets), self.size)
        return Split(split.images[mine], split.targets[mine])

    def in_order(self, values: Tensor) -> Tensor:
        """What every process found for its part of a split, one bool a sample, in the order of the split."""
        if self.size == 1:
            return values
        samples = int(self.sum(torch.tensor(len(values), device=values.device)))
        joined = torch.zeros(samples, dtype=torch.uint8, device=values.device)
        joined[self.rank :: self.size] = values.to(torch.uint8)
        return self.sum(joined).bool()

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module, with its gradients averaged over the processes."""
        if self.size == 1:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=True,  # a preparation phase trains a part; some methods leave a part out of a step
            **_leave_buffers(module),
        )

    def apart(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside, the module's gradients stay with this process; they are averaged after the next backward outside."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Add up over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def follow_leader(self, module: nn.Module) -> None:
        """Copy the leader's buffers: batch norm statistics, above all. Not those that a method keeps for one step only."""
        if self.size > 1:
            parameters = dict(module.named_parameters())
            device = next(iter(parameters.values())).device
            for name, value in module.state_dict().items():
                if name not in parameters and value.device == device:  # counters on the CPU are the same everywhere
                    dist.broadcast(value, 0)

    def send(self, cell: dict[str, Any] | None) -> None:
        """Have the other processes train this cell as well. None: there are no more."""
        if self.size > 1:
            raw = torch.frombuffer(bytearray(json.dumps(cell).encode()), dtype=torch.uint8)
            dist.broadcast(torch.tensor([len(raw)]), 0, group=self.control)
            dist.broadcast(raw, 0, group=self.control)

    def receive(self) -> dict[str, Any] | None:
        """Wait for the cell that the leader sends next."""
        length = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(length, 0, group=self.control)
        raw = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(raw, 0, group=self.control)
        return json.loads(bytes(raw.tolist()))


def _leave_buffers(module: nn.Module) -> dict[str, Any]:
    """Arguments with which torch's wrapper leaves buffers alone. From torch 2.13 on it copies the leader's once, at the start,
    but for those that are named: a method may keep some on the CPU, where NCCL reaches none.
    """
    if "forward_sync_buffers" not in inspect.signature(DistributedDataParallel).parameters:
        return {"broadcast_buffers": False}
    names = [name for name, _ in module.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)
    return {"forward_sync_buffers": False}


ALONE = Team()
_joined: list[Team] = []


@contextlib.contextmanager
def join(processes: int, device: str) -> Iterator[Team]:
    """The team of this process, found through torchrun's variables or submitit's. Within another `join` it is the same team.

    Raises:
        UserError: another number of processes was started.
    """
    check_started(processes)
    if _joined or processes == 1:
        yield _joined[0] if _joined else ALONE
        return
    group: dict[str, Any] = {}  # torch's own store, on many machines and where torchrun has started this process
    if "RANK" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        found = TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        if found.local_world_size == found.world_size:  # a machine's own name need not resolve
            os.environ["MASTER_ADDR"] = "127.0.0.1"
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            store = loopback_store(found.rank, found.world_size, found.master_port)
            group = {"store": store, "rank": found.rank, "world_size": found.world_size}
    local_rank = int(os.environ["LOCAL_RANK"])
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        gpus = torch.cuda.device_count()
        if gpus > 1 and local_rank >= gpus:  # one: each process may have been given its own
            raise UserError(f"process {local_rank} of this machine has no GPU of its own; there are {gpus}")
        torch.cuda.set_device(local_rank % gpus)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=STEP_PATIENCE, **group)
    control = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=IDLE_PATIENCE))
    team = Team(dist.get_rank(), dist.get_world_size(), local_rank, control)
    _joined.append(team)
    try:
        yield team
        if team.leads:
            team.send(None)
    finally:
        _joined.clear()
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def loopback_store(rank: int, processes: int, port: int) -> dist.TCPStore:
    """Where the processes of one machine find each other; torch's own listens on every network."""
    listening = None
    if rank == 0:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        listening = listener.detach()
    return dist.TCPStore("127.0.0.1", port, processes, rank == 0, STEP_PATIENCE, master_listen_fd=listening)


def _started() -> int:
    """How many processes were started together, this one included."""
    if _joined:
        return _joined[0].size
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    for name in ("SUBMITIT_LOCAL_NTASKS", "SLURM_NTASKS"):
        if "SUBMITIT_EXECUTOR" in os.environ and name in os.environ:
            return int(os.environ[name])
    return 1


def check_started(wanted: int) -> None:
    """
    Raises:
        UserError: another number of processes were started together, this one included.
    """
    if wanted != (started := _started()):
        raise UserError(
            f"recipe.processes is {wanted}, but {started} were started: batch norm would see other batches, and the result "
            f"would be another cell's. Start {wanted} (--cluster local and slurm do, or torchrun --nproc-per-node {wanted}), "
            "or change the recipe"
        )
