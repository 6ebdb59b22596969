"""What happens at the end of an epoch: evaluate, log, save. Runs in the order of this file."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import nn

from bench.engine.device import autocast
from bench.engine.distributed import ALONE, Team
from bench.engine.loop import Clock
from bench.engine.trainee import Trainee

log = logging.getLogger("bench.records.cell")


def accuracy(network: nn.Module, batches: Any, precision: str, device: torch.device, team: Team = ALONE) -> tuple[float, float]:
    """(top-1, top-5) in percent. With fewer than five classes top-5 counts all of them. Waits for the device once."""
    hits = torch.zeros(3, dtype=torch.int64, device=device)  # first, among the first five, samples
    was_training = network.training
    network.eval()
    with torch.no_grad(), autocast(device, precision):
        for image, target in batches:
            logits = network(image).logits
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
            hits[:2] += torch.stack([ranked[:, 0].sum(), ranked.sum()])
            hits[2] += len(target)
    network.train(was_training)
    hits = team.sum(hits).double()
    top1, top5 = (100 * hits[:2] / hits[2]).tolist()
    return top1, top5


class EvaluateHook(Hook):
    """Adds a row to every trainee's history after each epoch of the main phase."""

    def __init__(self, history: dict[str, list[dict[str, float]]], bench: Any, clock: Clock) -> None:
        self.history, self.bench, self.clock = history, bench, clock

    def after_train_epoch(self, runner: Any) -> None:
        loop = runner.train_loop
        if loop.epoch <= loop.prepare_epochs:
            return
        lr = next(iter(runner.optim_wrapper.values())).param_groups[0]["lr"]
        for cell_id, trainee in runner.model.trainees.items():
            row = {"epoch": loop.epoch - loop.prepare_epochs, "lr": lr}
            with self.clock.measure("evaluate_s"):
                for name in self.bench.held:
                    team, network = runner.model.team, trainee.predictor()
                    batches = self.bench.held_batches(name, team=team)
                    top1, top5 = accuracy(network, batches, self.bench.first.precision, self.bench.device, team)
                    row |= {f"{name}_top1": top1, f"{name}_top5": top5}
            row |= {"train_s": self.clock.seconds["train_s"], "evaluate_s": self.clock.seconds["evaluate_s"]}
            row |= {f"loss_{name}": value for name, value in loop.terms[cell_id].items()}
            self.history[cell_id].append(row)
            which = f"{cell_id}: " if len(self.history) > 1 else ""
            log.info("%s%s", which, ", ".join(f"{name} {value:.4g}" for name, value in row.items()))


class VisualiseHook(Hook):
    """Hands each new row to mmengine's visualiser backends (TensorBoard and others)."""

    def __init__(self, history: dict[str, list[dict[str, float]]], clock: Clock) -> None:
        self.history, self.clock = history, clock

    def after_train_epoch(self, runner: Any) -> None:
        with self.clock.measure("log_s"):
            for cell_id, rows in self.history.items():
                if rows:
                    prefix = f"{cell_id}/" if len(self.history) > 1 else ""
                    row = {f"{prefix}{name}": value for name, value in rows[-1].items() if name != "epoch"}
                    runner.visualizer.add_scalars(row, step=int(rows[-1]["epoch"]))

    def after_train(self, runner: Any) -> None:
        runner.visualizer.close()


class ProgressHook(Hook):
    """Tells the outside, at most once a second, how far the training is."""

    def __init__(self, tell: Callable[[str, dict[str, Any]], None], history: dict[str, list[dict[str, float]]], clock: Clock):
        self.tell, self.history, self.clock = tell, history, clock
        self._told, self._iter, self._time = 0.0, -1, 0.0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if time.monotonic() - self._told > 1:
            self._tell(runner)

    def after_train_epoch(self, runner: Any) -> None:
        self.after_train_iter(runner, 0)

    def _tell(self, runner: Any) -> None:
        now, loop = time.monotonic(), runner.train_loop
        per_second = 0.0
        if self._iter >= 0 and now > self._time:
            per_second = (loop.iter - self._iter) * loop.recipe.batch_size / (now - self._time)
        self._told = self._time = now
        self._iter = loop.iter
        for cell_id, rows in self.history.items():
            self.tell(
                cell_id,
                {
                    "epoch": loop.epoch,
                    "epochs": loop.max_epochs,
                    "share": loop.iter / loop.max_iters,
                    "top1": rows[-1]["test_top1"] if rows else None,
                    "images_per_s": round(per_second, 1),
                    "clocks": dict(self.clock.seconds),
                },
            )


class CheckpointHook(Hook):
    """Saves at the first epoch's end after `every_s` seconds; the state of one trainee a file."""

    priority = "VERY_LOW"

    def __init__(
        self, save: Callable[[str, bytes], None], history: dict[str, list[dict[str, float]]], clock: Clock, every_s: float
    ) -> None:
        self.save, self.history, self.clock, self.every_s = save, history, clock, every_s
        self._saved = time.monotonic()

    def after_train_epoch(self, runner: Any) -> None:
        loop = runner.train_loop
        if loop.epoch == loop.max_epochs or time.monotonic() - self._saved < self.every_s:
            return
        with self.clock.measure("checkpoint_s"):
            for cell_id, trainee in runner.model.trainees.items():
                optimizer = runner.optim_wrapper[cell_id].optimizer
                self.save(cell_id, pack(state(trainee, optimizer, loop.epoch, self.history[cell_id], self.clock.seconds)))
        self._saved = time.monotonic()


def state(
    trainee: Trainee, optimizer: torch.optim.Optimizer, epoch: int, history: list[dict[str, float]], clocks: dict[str, float]
) -> dict[str, Any]:
    """All that a training needs to go on: tensors and plain values only."""
    return {
        "trainee": trainee.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": epoch,
        "history": history,
        "clocks": dict(clocks),
        "threads": torch.get_num_threads(),
    }


def pack(value: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpack(raw: bytes, device: torch.device) -> dict[str, Any]:
    return torch.load(io.BytesIO(raw), map_location=device, weights_only=True)
