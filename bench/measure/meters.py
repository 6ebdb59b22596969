"""Meters: energy, memory, and how busy other processes keep the machine.

Energy is by Zeus (optional extra `energy`): NVML for GPUs, RAPL for CPU packages and their memory, where the machine has them.
Without Zeus a GPU's own counter is read, where the package nvidia-ml-py is installed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.engine.device import hand_back_freed_memory


def joules(action: Callable[[], object], device: torch.device) -> float | None:
    """Energy that the device's GPU and all CPU packages take while `action` runs, other work on them included.

    Returns:
        Joules; without Zeus those of the GPU alone. None where nothing here reports energy.
    """
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError:
        return _counted_joules(action, device)
    logging.getLogger("zeus").setLevel(logging.ERROR)
    try:
        monitor = ZeusMonitor(gpu_indices=[device.index or 0] if device.type == "cuda" else [])
        monitor.begin_window("action")
    except Exception:  # a slice of a GPU, a virtual one, or one named by its UUID: each fails in its own way
        return None
    action()
    measured = monitor.end_window("action")
    meters = [measured.gpu_energy, measured.cpu_energy, measured.dram_energy]
    values = [value for meter in meters if meter for value in meter.values()]
    return sum(values) if values else None


def _counted_joules(action: Callable[[], object], device: torch.device) -> float | None:
    """By the counter that NVML keeps of a GPU since its driver was loaded, in millijoules."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except Exception:  # the package is missing, or this GPU, a slice of one or an old one, counts nothing
        return None
    action()
    torch.cuda.synchronize(device)
    return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - before) / 1000


def host_peak_mib(action: Callable[[], object]) -> float:
    """Most main memory that this process holds while `action` runs (resident set).

    Where the system keeps no high-water mark: what is resident afterwards.
    """
    hand_back_freed_memory()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the mark starts anew
    action()
    with contextlib.suppress(OSError, KeyError):
        facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(facts["VmHWM"].split()[0]) / 2**10
    return psutil.Process().memory_info().rss / 2**20


class OtherWork:
    """How busy other processes keep this process's CPU cores, from here on."""

    def __init__(self) -> None:
        self._start = self._look()

    def percent(self) -> float:
        """Share of the cores' time since then that other processes used, in percent."""
        busy, own, passed = (now - then for now, then in zip(self._look(), self._start, strict=True))
        return min(100.0, max(0.0, 100 * (busy - own) / max(passed, 1e-6)))

    @staticmethod
    def _look() -> tuple[float, float, float]:
        """Seconds that the cores have been busy, that this process has computed, and that have passed on all cores."""
        cores = psutil.cpu_times(percpu=True)
        if hasattr(os, "sched_getaffinity"):
            mine = os.sched_getaffinity(0)
            cores = [core for number, core in enumerate(cores) if number in mine] or cores
        busy = sum(core.user + core.nice + core.system + getattr(core, "steal", 0.0) for core in cores)
        return busy, time.process_time(), len(cores) * time.perf_counter()


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that are created inside and still alive, for devices that do not count them."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        inputs = {StorageWeakRef(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(answer):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference not in inputs:  # neither a view nor an operation in place
                    self._alive[reference] = storage.nbytes()
        self._alive = {reference: size for reference, size in self._alive.items() if not reference.expired()}
        self.peak_bytes = max(self.peak_bytes, sum(self._alive.values()))
        return answer


def neighbours_percent(device: torch.device) -> float:
    """How busy other processes keep the machine right now, its CPU cores or the GPU; the probe wants to be alone."""
    others = OtherWork()
    time.sleep(0.5)
    return max(others.percent(), gpu_percent(device))


def gpu_percent(device: torch.device) -> float:
    """How busy the GPU is, while this process gives it nothing to do; 0 on a CPU, and without NVML's answer."""
    if device.type == "cuda":
        with contextlib.suppress(Exception):  # without its package, or on a slice of a GPU
            return float(torch.cuda.utilization(device))
    return 0.0
