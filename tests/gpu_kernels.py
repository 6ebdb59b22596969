"""Which kernels a step on a GPU consists of, and what other ways to compute it would take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_common import as_facts, real_sized, runner_of, time_steps
from gpu_driver import Setting
from torch import Tensor

from bench.engine.capture import CudaGraphs
from bench.engine.device import autocast
from bench.measure.probe import endless
from bench.measure.speed import timed

Facts = Iterator[dict[str, Any]]
REPLAYS = 5  # that are profiled


def kernels(setting: Setting) -> Facts:
    """Kernels of a replayed step, by the profiler; a convolution with its bias, addition and ReLU in one kernel or in three."""
    if not setting.on_gpu:
        yield {"skipped": "the profiler counts kernels on a GPU alone"}
        return
    for method, precision in (("none", "bf16"), ("none", "fp32"), ("tfd", "bf16"), ("kd", "bf16")):
        with as_facts(method) as facts:
            assembly = real_sized(setting, precision, [method])
            taker = runner_of(assembly, setting)
            taker.step.train()
            batches = endless(assembly.stream(next(iter(assembly.trainees.values()))), assembly.first.recipe.batch_size)
            for _ in range(8):
                taker(next(batches))
            torch.cuda.synchronize()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                for _ in range(REPLAYS):
                    taker(next(batches))
                torch.cuda.synchronize()
            found = sorted(profile.key_averages(), key=lambda each: -each.self_device_time_total)
            facts |= {"precision": precision, "path": taker.path}
            facts |= {"kernels": sum(each.count for each in found) / REPLAYS}
            facts |= {"busy_us": sum(each.self_device_time_total for each in found) / REPLAYS}
            facts["most"] = [
                [each.key[:70], each.count / REPLAYS, round(each.self_device_time_total / REPLAYS, 1)] for each in found[:14]
            ]
        yield facts
    yield from _choices(setting)
    yield from _fused(setting)


def _choices(setting: Setting) -> Facts:
    """Steps with other choices of cuDNN's kernels than training makes."""
    cudnn = torch.backends.cudnn
    for deterministic, benchmark in ((True, False), (False, False), (False, True), (True, True)):
        with as_facts("none") as facts, cudnn.flags(enabled=True, deterministic=deterministic, benchmark=benchmark):
            facts |= {"deterministic": deterministic, "benchmark": benchmark}
            facts |= time_steps(setting, real_sized(setting, "bf16", ["none"]), "graph")
        yield facts


def _fused(setting: Setting) -> Facts:
    """Microseconds of the pieces that a folded teacher consists of."""
    device = torch.device(setting.device)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for channels, side in ((16, 32), (32, 16), (64, 8)):
            with as_facts(f"convolution of {channels} channels, {str(dtype).partition('.')[2]}") as facts:
                draws = torch.Generator(device).manual_seed(0)

                def draw(*shape: int, dtype: torch.dtype = dtype, draws: torch.Generator = draws) -> Tensor:
                    drawn = torch.randn(*shape, generator=draws, device=device, dtype=dtype)
                    return drawn.to(memory_format=torch.channels_last) if len(shape) == 4 else drawn

                x, z = draw(64, channels, side, side), draw(64, channels, side, side)
                weight, bias = draw(channels, channels, 3, 3) / 12, draw(channels)

                def apart(x: Tensor = x, z: Tensor = z, w: Tensor = weight, b: Tensor = bias) -> Tensor:
                    return (torch.nn.functional.conv2d(x, w, b, padding=1) + z).relu_()

                def together(x: Tensor = x, z: Tensor = z, w: Tensor = weight, b: Tensor = bias) -> Tensor:
                    return torch.cudnn_convolution_add_relu(x, w, z, 1.0, b, [1, 1], [1, 1], [1, 1], 1)

                facts["apart_us"] = _graph_us(apart, device)
                facts["together_us"] = _graph_us(together, device)
                facts["difference"] = float((apart() - together()).abs().max())
            yield facts


def _graph_us(work: Callable[[], Tensor], device: torch.device) -> float:
    """Of one of 40 in a row, replayed from a graph."""
    graphs = CudaGraphs(device)
    with torch.no_grad(), graphs.beside():
        for _ in range(3):
            work()
        replay = graphs.record(lambda: [work() for _ in range(40)] and None)
    return 1e6 * timed(replay, 50, device) / 40


def compiled(setting: Setting) -> Facts:
    """Steps with networks that `torch.compile` has compiled, from a graph."""
    for method, precision in (("none", "bf16"), ("kd", "bf16")) if setting.on_gpu else (("none", "fp32"),):
        with as_facts(method) as facts:
            assembly = real_sized(setting, precision, [method])
            began = time.perf_counter()
            [trainee] = assembly.trainees.values()
            backend = "inductor" if setting.on_gpu else "aot_eager"  # a rehearsal need not wait for a compiler
            trainee.student.compile(dynamic=False, backend=backend)
            if trainee.teacher is not None:
                trainee.teacher.inference.compile(dynamic=False, backend=backend)
            image = next(iter(assembly.stream(trainee).epoch(0))).image
            with autocast(assembly.device, precision):
                trainee.student(image).logits.float().sum().backward()
            facts |= {"precision": precision, "compile_s": time.perf_counter() - began}
            facts |= time_steps(setting, assembly, "graph")
        yield facts
