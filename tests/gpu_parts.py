"""The parts of `gpu_driver.py`: each yields facts, one line of JSON each."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from capturing import FakeGraphs
from gpu_driver import Part, Setting, lines_of
from step_cases import CASES, Case, assembled
from tiny_grid import TINY, expanded
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.engine import hooks
from bench.engine.assemble import Assembly, assemble, untrained_teacher
from bench.engine.capture import CudaGraphs, StepRunner
from bench.engine.device import machine
from bench.engine.train import train
from bench.measure.probe import Probe, endless
from bench.measure.speed import measure_limits, timed
from bench.plan.expand import expand
from bench.records.folders import ResultsFolder
from bench.records.options import Options

Facts = Iterator[dict[str, Any]]
FEW = ("none", "kd", "crd", "dlb")  # one of each kind: alone, with a teacher, drawing, with a memory from batch to batch
GROUP = ("none", "kd", "tfd", "at", "sp", "nst", "ls", "vid", "pkt", "rkd", "cc", "dist", "dkd", "tfd+ls")
TERMS_APART = 1e-3  # relative: what rounding alone may do to a term
EPOCH_STEPS = 782  # of CIFAR-100 in batches of 64


def imports(setting: Setting) -> Facts:
    """Whether the project starts, and on what."""
    device = torch.device(setting.device)
    yield {"machine": machine(device).model_dump(mode="json"), "cudnn": torch.backends.cudnn.version()}
    if setting.on_gpu:
        yield {
            "nvidia_smi": subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20).stdout.splitlines()[:14]
        }
    yield {"energy_counter_j": _joules()}


class DrawsOnCpu(TorchFunctionMode):
    """Random numbers come from the CPU's generator, on whatever device they are wanted: the same ones everywhere."""

    NAMES = ("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "bernoulli", "multinomial", "dropout")

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(function, "__name__", "") not in self.NAMES:
            return function(*args, **kwargs)
        given = [each.device for each in args if isinstance(each, Tensor)]
        device = kwargs.pop("device", None) or (given[0] if given else "cpu")
        args = tuple(each.cpu() if isinstance(each, Tensor) else each for each in args)
        return function(*args, **kwargs).to(device)


def same_as_cpu(setting: Setting) -> Facts:
    """Loss terms of two steps of every method, on the device and on the CPU, in fp32 without TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for name, case in _cases(setting, "same_as_cpu"):
        if case.changes.get("precision") == "bf16":
            continue
        with _as_facts(name) as facts:
            ours, theirs = (_two_steps(case, setting.out / "scratch", device) for device in (setting.device, "cpu"))
            apart = {term: abs(ours[term] - theirs[term]) / max(1e-3, abs(theirs[term])) for term in theirs}
            worst = max(apart, key=lambda term: apart[term])
            facts |= {"same": apart[worst] <= TERMS_APART, "term": worst, "apart": apart[worst]}
        yield facts


def _two_steps(case: Case, scratch: Path, device: str) -> dict[str, float]:
    assembly = assembled(case, expanded, scratch, device)
    step = assembly.step()
    step.train()
    step.set_lr(0.01)
    torch.manual_seed(0)
    batches = assembly.stream(next(iter(assembly.trainees.values()))).epoch(0)
    with DrawsOnCpu():
        for _, batch in zip(range(2), batches, strict=False):
            step(batch, case.preparing)
    return {
        f"{cell} {name}": value for cell, terms in step.mean_terms(2, case.preparing).items() for name, value in terms.items()
    }


def capture(setting: Setting) -> Facts:
    """Whether every method's step can be recorded; each in this process until a recording fails."""
    for name, case in _cases(setting, "capture"):
        with _as_facts(name) as facts:
            assembly = assembled(case, expanded, setting.out / "scratch", setting.device)
            taker = _runner(assembly, setting)
            taker.step.train()
            taker.step.set_lr(0.01)
            stream = assembly.stream(next(iter(assembly.trainees.values())))
            for epoch in (0, 4, 9):
                for batch in stream.epoch(epoch):
                    taker(batch, case.preparing)
            facts |= {"path": taker.path, "reason": taker.path_reason}
        yield facts


def resume(setting: Setting) -> Facts:
    """Whether a training that was interrupted ends with the weights of one that was not."""
    for deterministic in (False,) if setting.tiny else (False, True):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.backends.cudnn.deterministic = deterministic
        for method in ("none",) if setting.tiny else FEW:
            with _as_facts(method) as facts:
                weights, reasons = zip(*(_trained(method, setting, epochs) for epochs in (None, None, 2)), strict=True)
                facts |= {"deterministic": deterministic, "reason": reasons[0]}
                facts |= {"repeats": weights[0] == weights[1], "resumes": weights[0] == weights[2]}
            yield facts


class _InterruptedError(Exception):
    pass


def _trained(method: str, setting: Setting, interrupt_after: int | None) -> tuple[str, str | None]:
    """(digest of the weights, how the steps were run) of a training that may be interrupted and taken up again."""
    spec = CASES[method].methods[0]
    changes = {"methods": [spec], "recipe": {"name": "digits", "epochs": 4, "batch_size": 16}, "precision": "fp32"}
    cells = expanded(**changes, pairs=[{"student": "resnet8", "teacher": "resnet14"}]).cells
    [cell] = [cell for cell in cells if cell.student["type"] == "resnet8"]
    folder = ResultsFolder(setting.out / "scratch" / f"{method} {time.monotonic_ns()}").grid("tiny")
    for teacher in cells:
        if cell.teacher and teacher.id == cell.teacher.cell:
            train([teacher], folder, Options(device="cpu", threads=1))
    save = hooks.CheckpointHook.after_train_epoch

    def stop(self: Any, runner: Any) -> None:
        save(self, runner)
        if runner.epoch == interrupt_after:
            raise _InterruptedError

    options = Options(device=setting.device, threads=1, checkpoint_s=0.0)
    if interrupt_after:
        hooks.CheckpointHook.after_train_epoch = stop
        with contextlib.suppress(_InterruptedError):
            train([cell], folder, options)
        hooks.CheckpointHook.after_train_epoch = save
    [record] = train([cell], folder, options)
    return record.weights_sha256, record.path_reason


def speed(setting: Setting) -> Facts:
    """Milliseconds a step: one by one and from a graph, in both precisions, alone and as groups."""
    for precision in ("bf16", "fp32") if setting.on_gpu else ("fp32",):
        for method in ("none", "tfd", "kd"):
            assembly = _real_sized(setting, precision, [method])
            for path in ("eager", "graph"):
                with _as_facts(method) as facts:
                    facts |= {"precision": precision, "cells": 1, **_timed(setting, assembly, path)}
                yield facts
    for count in (2,) if setting.tiny else (4, 8, 14):
        with _as_facts("group") as facts:
            assembly = _real_sized(setting, "bf16" if setting.on_gpu else "fp32", list(GROUP[:count]))
            measured = _timed(setting, assembly, "graph")
            facts |= {"cells": count, **measured, "ms_a_cell": measured["step_ms"] / count}
        yield facts
    if not setting.tiny:
        limits = measure_limits(torch.device(setting.device))
        yield {"matrix_gflops_per_s": limits.matrix_gflops_per_s, "memory_gb_per_s": limits.memory_gb_per_s}


def _timed(setting: Setting, assembly: Assembly, path: str) -> dict[str, Any]:
    taker = _runner(assembly, setting) if path == "graph" else StepRunner(assembly.step())
    taker.step.train()
    batches = endless(assembly.stream(next(iter(assembly.trainees.values()))), assembly.first.recipe.batch_size)

    def step() -> None:
        taker(next(batches))

    device = assembly.device
    timed(step, 6, device)  # and the recording
    count = max(1, round((0.05 if setting.tiny else 1.0) / timed(step, 3, device)))
    turns = [1000 * timed(step, count, device) for _ in range(3)]
    return {
        "path": path,
        "ran": taker.path,
        "reason": taker.path_reason,
        "step_ms": statistics.median(turns),
        "turns_ms": turns,
    }


def energy(setting: Setting) -> Facts:
    """Joules of a step, and the most memory that its tensors take."""
    for method in ("none", "tfd", "kd"):
        with _as_facts(method) as facts:
            assembly = _real_sized(setting, "bf16" if setting.on_gpu else "fp32", [method])
            probe = Probe(assembly.first, assembly)
            probe.take_steps(3)
            facts["peak_mib"] = probe.peak_mib()
            count = 3 if setting.tiny else 500
            before, began = _joules(), time.perf_counter()
            probe.take_steps(count)
            if setting.on_gpu:
                torch.cuda.synchronize()
            after = _joules()
            facts["step_ms"] = 1000 * (time.perf_counter() - began) / count
            facts["step_j"] = (after - before) / count if before is not None and after is not None else None
        yield facts


def real(setting: Setting) -> Facts:
    """A grid on real images through the command line, for as many epochs as the time allows."""
    if not setting.images and not setting.tiny:
        yield {"skipped": "no images were given: --images"}
        return
    seeds, methods = [0, 1], ["none", {"tfd": {"ramp_epochs": 0}}]
    epochs = 2 if setting.tiny else _affordable_epochs(setting, len(seeds))
    raw: dict[str, Any] = {"about": f"{epochs} epochs on a GPU.", "seeds": seeds, "methods": methods}
    if setting.tiny:
        raw |= {"data": TINY["data"], "recipe": TINY["recipe"], "pairs": TINY["pairs"], "precision": "fp32"}
    else:
        raw |= {
            "data": {"type": "npz", "path": setting.images, "name": "cifar100"},
            "recipe": {"name": "crd", "epochs": epochs},
        }
        raw |= {"pairs": [{"student": "resnet20", "teacher": "resnet110"}]}
    grid = setting.out / "gpu.yaml"
    grid.write_text(yaml.safe_dump(raw))
    yield {"epochs": epochs, "cells": len(seeds) * len(methods)}
    options = ["--device", setting.device, "--results", str(setting.out / "results"), "--together", "--jobs", "1"]
    command = [sys.executable, "run_bench.py", "run", str(grid), "--no-cost", "--checkpoint-s", "20", *options]
    code = subprocess.run(command, cwd=Path(__file__).resolve().parents[1]).returncode
    records, problems = ResultsFolder(setting.out / "results").grid("gpu").records()
    yield {"code": code, "problems": [problem.reason for problem in problems], "images": setting.images or "digits"}
    for record in records:
        yield {"cell": record.id, "top1": record.accuracies.last.top1, "train_s": record.clocks.train_s, "path": record.path}


def _affordable_epochs(setting: Setting, groups: int) -> int:
    """As many epochs as fit, by the steps that were measured: at most 240."""
    steps = [3.0]
    graphs = [line for line in lines_of(setting) if line.get("what") == "tfd" and line.get("ran") == "graph"]
    steps = [2 * line["step_ms"] for line in graphs] or steps  # of two cells
    return max(5, min(240, int(0.8 * 1000 * (setting.left_s - 30) / (EPOCH_STEPS * groups * min(steps)))))


def _cases(setting: Setting, part: str) -> Iterator[tuple[str, Case]]:
    """Those that a part has not tried yet: it is begun anew after an error that ends its process."""
    tried = {line.get("what") for line in lines_of(setting) if line["part"] == part}
    for name, case in CASES.items():
        if name not in tried and (not setting.tiny or name in ("kd", "dlb")):
            yield name, case


@contextlib.contextmanager
def _as_facts(what: str) -> Iterator[dict[str, Any]]:
    """Facts that are filled inside; an error becomes one of them, so that the next case is tried."""
    facts: dict[str, Any] = {"what": what}
    try:
        yield facts
    except Exception as error:
        facts["ends_process"] = type(error).__name__ in ("AcceleratorError", "CaptureError")
        facts["error"] = f"{type(error).__name__}: {str(error)[:300]}"


def _runner(assembly: Assembly, setting: Setting) -> StepRunner:
    return StepRunner(assembly.step(), CudaGraphs(assembly.device) if setting.on_gpu else FakeGraphs())


def _real_sized(setting: Setting, precision: str, methods: list[Any]) -> Assembly:
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


def _joules() -> float | None:
    """What the GPU has taken since its driver was loaded; None where nothing counts it."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0)) / 1000
    except Exception:
        return None


PARTS: dict[str, Part] = {
    "imports": imports,
    "same_as_cpu": same_as_cpu,
    "capture": capture,
    "resume": resume,
    "speed": speed,
    "energy": energy,
    "real": real,
}
