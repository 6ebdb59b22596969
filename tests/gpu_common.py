"""What the parts of `gpu_driver.py` share: facts from errors, networks of real size, clocks."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from capturing import FakeGraphs
from gpu_driver import Setting
from tiny_grid import TINY

from bench.engine.assemble import Assembly, assemble, untrained_teacher
from bench.engine.capture import CudaGraphs, StepRunner
from bench.measure.probe import endless
from bench.measure.speed import timed
from bench.plan.expand import expand
from bench.records.folders import ResultsFolder
from bench.records.options import Options


@contextlib.contextmanager
def as_facts(what: str) -> Iterator[dict[str, Any]]:
    """Facts that are filled inside; an error becomes one of them, so that the next case is tried."""
    facts: dict[str, Any] = {"what": what}
    try:
        yield facts
    except Exception as error:
        facts["ends_process"] = type(error).__name__ in ("AcceleratorError", "CaptureError")
        facts["error"] = f"{type(error).__name__}: {str(error)[:300]}"


def runner_of(assembly: Assembly, setting: Setting) -> StepRunner:
    return StepRunner(assembly.step(), CudaGraphs(assembly.device) if setting.on_gpu else FakeGraphs())


def time_steps(setting: Setting, assembly: Assembly, path: str) -> dict[str, Any]:
    taker = runner_of(assembly, setting) if path == "graph" else StepRunner(assembly.step())
    taker.step.train()
    batches = endless(assembly.stream(next(iter(assembly.trainees.values()))), assembly.first.recipe.batch_size)

    def step() -> None:
        taker(next(batches))

    device = assembly.device
    timed(step, 6, device)  # and the recording
    count = max(1, round((0.05 if setting.tiny else 0.3) / timed(step, 3, device)))
    turns = [1000 * timed(step, count, device) for _ in range(3)]
    return {
        "path": path,
        "ran": taker.path,
        "reason": taker.path_reason,
        "step_ms": statistics.median(turns),
        "turns_ms": turns,
    }


def real_sized(setting: Setting, precision: str, methods: list[Any]) -> Assembly:
    """The students of CIFAR-100's grid, on noise; in a rehearsal the tiny ones."""
    raw = {**TINY, "methods": methods, "precision": precision}
    if not setting.tiny:
        raw |= {"data": {"type": "npz", "path": str(_noise(setting)), "name": "noise"}, "recipe": "crd"}
        raw |= {"pairs": [{"student": "resnet20", "teacher": "resnet110"}]}
    cells = expand("speed", raw, device=setting.device).cells
    cells = [cell for cell in cells if not any(each.teacher and each.teacher.cell == cell.id for each in cells)] or cells
    options = Options(device=setting.device, threads=1 if setting.tiny else 0)
    return assemble(cells, ResultsFolder(setting.out / "scratch").grid("speed"), options, untrained_teacher)


def _noise(setting: Setting) -> Path:
    """Images in CIFAR-100's shape; steps on them take as long."""
    path = setting.out / "scratch" / "noise.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draws, arrays = np.random.default_rng(0), {}
        for split, count in (("train", 50_000), ("test", 10_000)):
            arrays[f"{split}_images"] = draws.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.arange(count) % 100
        np.savez(path, **arrays)
    return path


def joules() -> float | None:
    """What the GPU has taken since its driver was loaded; None where nothing counts it."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0)) / 1000
    except Exception:
        return None
