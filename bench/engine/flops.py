"""Arithmetic of a training step and of the deployed network, by torch's FlopCounterMode."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.engine.assemble import Assembly
from bench.engine.device import autocast
from bench.engine.step import Step
from bench.engine.trainee import Trainee
from bench.records.record import Flops


def count_flops(assembly: Assembly, trainee: Trainee) -> Flops:
    """Count on a copy: matrix products and convolutions, a multiply-add as two."""
    copy, batch = trainee.duplicate(), next(iter(assembly.stream(trainee).epoch(0)))
    step = Step({"copy": copy}, assembly.device, assembly.first.precision)
    prepares = copy.method.prepare_epochs > 0
    counts = {
        "step": _count(lambda: step(batch)),
        "prepare_step": _count(lambda: step(batch, preparing=True)) if prepares else 0,
    }
    network = copy.predictor().eval()
    with autocast(assembly.device, assembly.first.precision):
        for teacher in copy.teachers:
            teacher.forget()
            forward = _count(partial(teacher, batch.image))
            counts["teacher_forward"] = counts.get("teacher_forward", 0) + forward
            teacher.forget()
        counts["inference"] = _count(lambda: network(batch.image[:1]))
    return Flops(**{"teacher_forward": 0, **counts})


def _count(work: Callable[[], object]) -> int:
    # in compiled networks nothing would be counted
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
