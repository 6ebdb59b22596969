"""Energy by Zeus (optional extra `energy`): NVML for GPUs, RAPL for CPU packages and their memory, where the machine tells."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch


def joules(action: Callable[[], object], device: torch.device) -> float | None:
    """Energy that the device's GPU and all CPU packages take while `action` runs; of other work on them as well.

    None: Zeus is not installed, or this machine reports no energy.
    """
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError:
        return None
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
