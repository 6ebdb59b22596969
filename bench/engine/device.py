"""Which device and precision a training uses, and what the machine is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import random
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import torch

from bench.cores import usable_cores
from bench.errors import UserError
from bench.records.record import Machine

GPU_ELSEWHERE = "gpu elsewhere"  # a cluster's GPU, for jobs that are planned on this machine


def resolve_device(name: str = "auto") -> torch.device:
    """'auto' is the first CUDA device, or the CPU. `GPU_ELSEWHERE` is torch's meta device: good for planning alone.

    Raises:
        UserError: this machine has no such device; the message names those it has.
    """
    if name == GPU_ELSEWHERE:
        return torch.device("meta")
    has = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(has[1] if len(has) > 1 else "cpu")
    if name == "cuda" and len(has) > 1:
        name = "cuda:0"
    if name not in has:
        raise UserError(f"--device: this machine has no '{name}'; it has: auto, {', '.join(has)}")
    return torch.device(name)


@cache
def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "meta":
        return True  # as every GPU since 2020; a job on an older one fails and says so
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()


def resolve_precision(name: str, device: torch.device) -> str:
    """'auto' is bf16 where the device has it, else fp32.

    It depends on the kind of device alone and is not measured again on each, since it is part of a cell's id. On an H200 a
    step of resnet20 takes 1.68 ms in bf16 and 2.33 ms in fp32 with TF32, though fp32 has fewer kernels: its batch norm is
    cuDNN's.

    Raises:
        UserError: the device does not have the precision asked for.
    """
    has = ["fp32", *(["bf16"] if has_bf16(device) else [])]
    if name == "auto":
        return has[-1]
    if name not in has:
        raise UserError(f"precision: {device} has no '{name}'; it has: auto, {', '.join(has)}")
    return name


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """bf16 matrix products and convolutions; parameters, batch norm statistics and losses stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def choose_repeatable_kernels() -> None:
    """Have CUDA's libraries choose kernels that give the same sums each time; nothing changes on a CPU.

    Not enough for methods that add up at places drawn with replacement: their cards name it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def _libc(function: str) -> Callable[..., int] | None:
    """A function of glibc's allocator; None where the C library is another."""
    return getattr(ctypes.CDLL(None), function, None) if platform.system() == "Linux" else None


def keep_freed_memory() -> None:
    """From here on, have glibc's allocator keep what a step frees for the next one. With another C library nothing happens.

    By default it hands large blocks back to the system, and a step pays a page fault for each 4 KiB that it takes anew: how
    many depends on the sizes of a method's tensors, and on what ran before it. Feature maps above 32 MiB suffer most (measured
    on 2 cores, batch 64, in processes of their own: on resnet8x4 reviewkd's step took 1.1 to 1.5 times as long, frskd's 1.1 to
    1.8 times, on resnet20 crd's 1.1 to 1.3 times). The price is a larger process, since free blocks between others stay.
    """
    set_option = _libc("mallopt")
    if set_option is None:
        return
    trim_threshold, mmap_max = -1, -4  # names of malloc.h
    set_option(mmap_max, 0)  # in the main thread, which trains, no block is a mapping of its own
    set_option(trim_threshold, -1)  # and the heap never shrinks


def hand_back_freed_memory() -> None:
    """Give the system back what `keep_freed_memory` has kept, once."""
    if trim := _libc("malloc_trim"):
        trim(0)


def machine(device: torch.device) -> Machine:
    """What this machine is: hardware, system, versions of the packages that compute."""
    packages = ("torch", "torchvision", "mmengine-lite", "numpy")
    versions = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    if device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
    return Machine(
        host=platform.node(),
        device="cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        cpu=_cpu_name(),
        cores=usable_cores(),
        memory_mib=psutil.virtual_memory().total // 2**20,
        platform=platform.platform(),
        versions=versions,
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def draws_as_found(device: torch.device) -> Iterator[None]:
    """Leave all global generators of random numbers as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
