"""What happens at the end of an epoch: evaluate, log, save. And hooks of users."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.visualization import Visualizer

from bench.engine import checkpoint, gradients
from bench.engine.assemble import Assembly
from bench.engine.evaluation import Evaluation, evaluate
from bench.engine.loop import End, Loop, Row
from bench.engine.schedule import learning_rate
from bench.errors import UserError, described
from bench.plugins import looked_up
from bench.records.cell_folder import CellFolder
from bench.records.folders import GridFolder

log = logging.getLogger("bench.records.cell")


class EvaluateHook(Hook):
    """Adds a row to every trainee's history after each epoch of the main phase, and after the last what records alone hold."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly

    def after_train_epoch(self, runner: Loop) -> None:
        epoch = runner.epoch - runner.prepare_epochs
        if epoch <= 0:
            return
        steps = runner.steps
        lr = learning_rate(runner.recipe, epoch * steps - 1, steps)
        for cell_id, rows in runner.history.items():
            row: Row = {"epoch": epoch, "lr": lr}
            with runner.clock.measure("evaluate_s"):
                for name in self.assembly.held:
                    found = self._evaluate(runner, cell_id, name)
                    row |= {f"{name}_top1": found.top1, f"{name}_top5": found.top5}
                    if name == "test" and runner.epoch == runner.max_epochs:
                        runner.ends[cell_id] = End(
                            runner.step.team.in_order(found.correct).cpu(),
                            found.nll,
                            found.calibration_error,
                            self._evaluate(runner, cell_id, "train").top1,
                        )
            row |= {name: runner.seconds[name] for name in ("train_s", "evaluate_s")}
            row |= {f"loss_{name}": value for name, value in runner.terms[cell_id].items()}
            rows.append(row)
            which = f"{cell_id}: " if len(runner.history) > 1 else ""
            log.info("%s%s", which, ", ".join(f"{name} {value:.4g}" for name, value in row.items()))

    def _evaluate(self, runner: Loop, cell_id: str, name: str) -> Evaluation:
        step = runner.step
        batches = self.assembly.held_batches(name, team=step.team)
        network = step.members[cell_id].trainee.predictor()
        return evaluate(network, batches, step.precision, step.device, step.team)


class VisualizeHook(Hook):
    """Hands each new row to mmengine's visualizer backends (TensorBoard and others).

    Args:
        backends: their names, such as "TensorboardVisBackend".
        place: of the cell, where they write in a folder for each attempt.
    """

    def __init__(self, backends: tuple[str, ...], place: CellFolder) -> None:
        folder = place.visual_folder(f"{time.strftime('%Y%m%d_%H%M%S')}-{secrets.token_hex(3)}")  # a new one: no link is in it
        self.visualizer = Visualizer(vis_backends=[{"type": name} for name in backends], save_dir=str(folder))

    def after_train_epoch(self, runner: Loop) -> None:
        with runner.clock.measure("log_s"):
            for cell_id, rows in runner.history.items():
                if rows:
                    prefix = f"{cell_id}/" if len(runner.history) > 1 else ""
                    row = {f"{prefix}{name}": value for name, value in rows[-1].items() if name != "epoch"}
                    self.visualizer.add_scalars(row, step=int(rows[-1]["epoch"]))

    def after_train(self, runner: Loop) -> None:
        self.visualizer.close()


class ProgressHook(Hook):
    """Writes down, at most once a second, how far the training is."""

    def __init__(self, folder: GridFolder) -> None:
        self.folder = folder
        self._written, self._iter = 0.0, -1

    def after_train_iter(self, runner: Loop, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if time.monotonic() - self._written > 1:
            self._write(runner)

    def after_train_epoch(self, runner: Loop) -> None:
        self.after_train_iter(runner, 0)

    def _write(self, runner: Loop) -> None:
        now, per_second = time.monotonic(), 0.0
        if self._iter >= 0 and now > self._written:
            per_second = (runner.iter - self._iter) * runner.recipe.batch_size / (now - self._written)
        self._written, self._iter = now, runner.iter
        for cell_id, rows in runner.history.items():
            progress = {
                "epoch": runner.epoch,
                "epochs": runner.max_epochs,
                "share": runner.iter / runner.max_iters,
                "top1": rows[-1]["test_top1"] if rows else None,
                "images_per_s": round(per_second, 1),
                "clocks": dict(runner.seconds),
            }
            self.folder.cell(cell_id).write_progress(progress)


class CheckpointHook(Hook):
    """Saves at the first epoch's end after `every_s` seconds; the state of one trainee a file."""

    def __init__(self, folder: GridFolder, every_s: float) -> None:
        self.folder, self.every_s = folder, every_s
        self._written = time.monotonic()

    def after_train_epoch(self, runner: Loop) -> None:
        if runner.epoch == runner.max_epochs or time.monotonic() - self._written < self.every_s:
            return
        with runner.clock.measure("checkpoint_s"):
            for cell_id in runner.history:
                self.folder.cell(cell_id).write_checkpoint(checkpoint.pack(checkpoint.state(runner, cell_id)))
        self._written = time.monotonic()


SHIPPED = (gradients.GradientShares.__name__,)  # hooks that users name without a module


def user_hook(name: str) -> Hook:
    """A hook that the user names, built without arguments.

    Args:
        name: the dotted path of its class, or the name under which it is in mmengine's registry of hooks.

    Raises:
        UserError: there is no such class, it is no hook, or it cannot be built.
    """
    kind = looked_up(HOOKS, name, "--hook")
    if kind is None:
        also = f"; those that ship: {', '.join(SHIPPED)}"
        raise UserError(f"--hook {name}: there is no such class; write MODULE.Class, and name its file with --import{also}")
    if not (isinstance(kind, type) and issubclass(kind, Hook)):
        raise UserError(f"--hook {name}: it is no subclass of mmengine.hooks.Hook")
    try:
        return kind()
    except Exception as error:
        raise UserError(f"--hook {name}: {described(error)}") from error
