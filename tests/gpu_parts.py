"""The parts of `gpu_driver.py`: each yields facts, one line of JSON each."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from gpu_common import as_facts, joules, real_sized, runner_of, time_steps
from gpu_driver import SHARES, Part, Setting, lines_of
from gpu_kernels import compiled, kernels
from step_cases import CASES, Case, assembled
from tiny_grid import TINY, expanded
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.engine import hooks
from bench.engine.device import machine
from bench.engine.train import train
from bench.measure.probe import Probe
from bench.measure.speed import measure_limits
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
    yield {"energy_counter_j": joules()}


class DrawsOnCpu(TorchFunctionMode):
    """Random numbers come from the CPU's generator, on whatever device they are wanted: the same ones everywhere."""

    NAMES = (
        "rand",
        "randn",
        "randint",
        "randperm",
        "rand_like",
        "randn_like",
        "bernoulli",
        "bernoulli_",
        "multinomial",
        "dropout",
    )

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(function, "__name__", "") not in self.NAMES:
            return function(*args, **kwargs)
        given = [each.device for each in args if isinstance(each, Tensor)]
        device = kwargs.pop("device", None) or (given[0] if given else "cpu")
        on_cpu = tuple(each.cpu() if isinstance(each, Tensor) else each for each in args)
        drawn = function(*on_cpu, **kwargs)
        return args[0].copy_(drawn) if function.__name__.endswith("_") else drawn.to(device)


def same_as_cpu(setting: Setting) -> Facts:
    """Loss terms of two steps of every method, on the device and on the CPU, in fp32 without TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for name, case in _cases(setting, "same_as_cpu"):
        if case.changes.get("precision") == "bf16":
            continue
        with as_facts(name) as facts:
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
            step(batch, preparing=case.preparing)
    return {
        f"{cell} {name}": value for cell, terms in step.mean_terms(2, case.preparing).items() for name, value in terms.items()
    }


def capture(setting: Setting) -> Facts:
    """Whether every method's step can be recorded; each in this process until a recording fails."""
    for name, case in _cases(setting, "capture"):
        with as_facts(name) as facts:
            assembly = assembled(case, expanded, setting.out / "scratch", setting.device)
            taker = runner_of(assembly, setting)
            taker.step.train()
            taker.step.set_lr(0.01)
            stream = assembly.stream(next(iter(assembly.trainees.values())))
            for epoch in (0, 4, 9):
                for batch in stream.epoch(epoch):
                    taker(batch, preparing=case.preparing)
            facts |= {"path": taker.path, "reason": taker.path_reason}
        yield facts


def resume(setting: Setting) -> Facts:
    """Whether a training that was interrupted ends with the weights of one that was not."""
    for deterministic in (False,) if setting.tiny else (False, True):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.backends.cudnn.deterministic = deterministic
        for method in ("none",) if setting.tiny else FEW:
            with as_facts(method) as facts:
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
    """Milliseconds a step, what is wanted most first: from a graph, as groups, one by one, in fp32."""
    precisions = ("bf16", "fp32") if setting.on_gpu else ("fp32",)
    yield from _alone(setting, precisions[0], "graph")
    for count in (2,) if setting.tiny else (2, 4, 8, 14):
        with as_facts("group") as facts:
            assembly = real_sized(setting, precisions[0], list(GROUP[:count]))
            measured = time_steps(setting, assembly, "graph")
            facts |= {"cells": count, **measured, "ms_a_cell": measured["step_ms"] / count}
        yield facts
    yield from _alone(setting, precisions[0], "eager")
    for precision in precisions[1:]:
        for path in ("graph", "eager"):
            yield from _alone(setting, precision, path)
    if not setting.tiny:
        limits = measure_limits(torch.device(setting.device))
        yield {"matrix_gflops_per_s": limits.matrix_gflops_per_s, "memory_gb_per_s": limits.memory_gb_per_s}


def _alone(setting: Setting, precision: str, path: str) -> Facts:
    """Of steps of one training."""
    for method in ("none", "tfd", "kd"):
        with as_facts(method) as facts:
            measured = time_steps(setting, real_sized(setting, precision, [method]), path)
            facts |= {"precision": precision, "cells": 1, **measured}
        yield facts


def energy(setting: Setting) -> Facts:
    """Joules of a step, and the most memory that its tensors take."""
    for method in ("none", "tfd", "kd"):
        with as_facts(method) as facts:
            assembly = real_sized(setting, "bf16" if setting.on_gpu else "fp32", [method])
            probe = Probe(assembly.first, assembly)
            probe.take_steps(3)
            facts["peak_mib"] = probe.peak_mib()
            count = 3 if setting.tiny else 500
            before, began = joules(), time.perf_counter()
            probe.take_steps(count)
            if setting.on_gpu:
                torch.cuda.synchronize()
            after = joules()
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
    command = [sys.executable, "run_bench.py", "run", str(grid), "--no-cost", "--no-report", "--checkpoint-s", "20", *options]
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
    for number, (name, case) in enumerate(CASES.items()):
        ours = setting.share is None or number % SHARES == setting.share
        if ours and name not in tried and (not setting.tiny or name in ("kd", "dlb")):
            yield name, case


PARTS: dict[str, Part] = {
    "imports": imports,
    "same_as_cpu": same_as_cpu,
    "capture": capture,
    "resume": resume,
    "speed": speed,
    "kernels": kernels,
    "compiled": compiled,
    "energy": energy,
    "real": real,
}
