"""One cell on two processes over gloo, against one process that does by hand what two should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch
from small import write_grid

from bench.engine.assemble import assemble
from bench.engine.distributed import ALONE, Team, loopback_store
from bench.engine.optimizer import Optimizer
from bench.engine.schedule import learning_rate
from bench.plan import grid_file
from bench.plan.expand import expand
from bench.records.cell import Cell, seed_from
from bench.records.folders import GridFolder, ResultsFolder
from bench.records.options import Options
from bench.records.recipe import Recipe
from methods.base import Batch
from run_bench import main

ROOT = Path(__file__).resolve().parent.parent
RECIPE = {"name": "digits", "epochs": 4, "batch_size": 16, "processes": 2}


@pytest.fixture
def grid(tmp_path: Path) -> str:
    return write_grid(tmp_path, methods=["none"], recipe=RECIPE)  # 50 images: the last batch of 2 is dropped


def options(root: Path, *more: str) -> list[str]:
    return ["--results", str(root), "--device", "cpu", "--no-cost", "--no-report", "--threads", "1", *more]


def by_hand(cell: Cell, folder: GridFolder) -> list[dict[str, float]]:
    """Rows of the curves: every batch in two halves, batch norm by half, gradients averaged, statistics of the first half."""
    bench = assemble([cell], folder, Options(device="cpu", threads=1))
    trainee = bench.trainees[cell.id]
    stream, optimizer = bench.stream(trainee), Optimizer(trainee, bench.device)
    statistics = [name for name, _ in trainee.student.named_buffers()]
    rows = []
    for epoch in range(cell.recipe.epochs):
        torch.manual_seed(seed_from(cell.seed, epoch))
        trainee.train()
        losses = []
        for step, batch in enumerate(stream.epoch(epoch)):
            before = {name: value.clone() for name, value in trainee.student.named_buffers()}
            half = len(batch.target) // 2
            for part in (slice(half, None), slice(None, half)):  # the first half last: its statistics stay
                with torch.no_grad():
                    for name in statistics:
                        trainee.student.get_buffer(name).copy_(before[name])
                image, target = batch.image[part], batch.target[part]
                loss = torch.nn.functional.cross_entropy(trainee.student(image).logits, target)
                (loss / 2).backward()
                losses.append(float(loss.detach()))
            optimizer.set_lr(learning_rate(cell.recipe, epoch * len(stream) + step, len(stream)))
            optimizer.step()
        trainee.eval()
        with torch.no_grad():
            hits = [(trainee.student(image).logits.argmax(1) == target).float() for image, target in bench.held_batches("test")]
        rows.append({"loss": sum(losses) / len(losses), "top1": 100 * float(torch.cat(hits).mean())})
    return rows


def check_against_by_hand(root: Path, grid: str) -> None:
    name, raw = grid_file.read(grid)
    (cell,) = expand(name, raw, device="cpu").cells
    folder = ResultsFolder(root).grid("small")
    record = folder.cell(cell.id).record()
    assert record is not None
    header, *lines = [line.split(",") for line in folder.cell(cell.id).curves(record).splitlines()]
    rows = [dict(zip(header, map(float, line), strict=True)) for line in lines]
    expected = by_hand(cell, folder)
    assert [row["loss_ce"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-4)
    assert [row["test_top1"] for row in rows] == pytest.approx([row["top1"] for row in expected], abs=2.01)  # a sample of 50
    assert record.steps == cell.recipe.epochs * 3
    check_by_image(cell, folder)


def check_by_image(cell: Cell, folder: GridFolder) -> None:
    """Both processes' answers stand at their images' places."""
    record, raw = folder.cell(cell.id).finished_weights()
    bench = assemble([cell], folder, Options(device="cpu", threads=1))
    student = bench.trainees[cell.id].student
    student.load_state_dict(safetensors.torch.load(raw))
    student.eval()
    with torch.no_grad():
        right = torch.cat([student(image).logits.argmax(1) == target for image, target in bench.held_batches("test")])
    kept = folder.cell(cell.id).correct(record)
    assert kept is not None
    assert kept.tolist() == right.tolist()
    assert len(set(kept.tolist())) == 2  # or the order would not matter


def test_two_local_processes_equal_two_halves_by_hand(grid: str, tmp_path: Path) -> None:
    assert main(["run", grid, *options(tmp_path / "results")]) == 0
    check_against_by_hand(tmp_path / "results", grid)


def test_torchrun_gives_the_same(grid: str, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    run = [
        sys.executable,
        *torchrun,
        str(ROOT / "run_bench.py"),
        "run",
        grid,
        *options(tmp_path / "results", "--cluster", "debug"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    check_against_by_hand(tmp_path / "results", grid)


def test_processes_of_one_machine_listen_on_loopback_alone() -> None:
    def connections() -> set[Any]:
        return {each for each in psutil.net_connections("inet") if each.pid == os.getpid()}

    before = connections()
    store = loopback_store(0, 1, 0)
    opened = connections() - before
    store.set("a", "b")
    assert {each.laddr.ip for each in opened if each.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def test_another_number_of_processes_is_refused(grid: str, tmp_path: Path) -> None:
    assert main(["run", grid, *options(tmp_path / "results", "--cluster", "debug")]) == 2


def test_a_memory_by_sample_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path, methods=["pskd"], recipe=RECIPE)
    assert main(["run", grid, *options(tmp_path / "results")]) == 2
    assert "memory by sample" in capsys.readouterr().err


def test_processes_are_part_of_the_identity_only_where_there_are_several() -> None:
    assert Recipe(processes=1).model_dump() == Recipe().model_dump()
    with pytest.raises(ValueError, match="processes"):
        Recipe(batch_size=4, processes=3)


def test_shares_add_up_to_the_batch_and_weights_to_its_mean() -> None:
    batch = Batch(torch.arange(7.0).view(7, 1, 1, 1), torch.arange(7), torch.arange(7) + 10)
    shares = [Team(rank, 3).share(batch) for rank in range(3)]
    assert torch.cat([share.index for share, _ in shares]).tolist() == list(range(10, 17))
    assert sum(weight * float(share.image.mean()) for share, weight in shares) / 3 == pytest.approx(3.0)
    assert ALONE.share(batch) == (batch, 1.0)


def test_accuracies_of_a_team_are_those_of_one(grid: str, tmp_path: Path) -> None:
    """The weights that two processes left, evaluated by one: 51 test samples, so that the shares are unequal."""
    changes = ["--set", "data.test_images=51"]
    assert main(["run", grid, *options(tmp_path / "results"), *changes]) == 0
    name, raw = grid_file.read(grid, changes[1:])
    (cell,) = expand(name, raw, device="cpu").cells
    folder = ResultsFolder(tmp_path / "results").grid("small")
    record = folder.cell(cell.id).record()
    assert record is not None
    bench = assemble([cell], folder, Options(device="cpu", threads=1))
    student = bench.trainees[cell.id].student
    student.load_state_dict(safetensors.torch.load(folder.cell(cell.id).weights(record)))
    student.eval()
    with torch.no_grad():
        ranked = torch.cat([student(image).logits.argsort(1, descending=True) for image, _ in bench.held_batches("test")])
    hits = ranked == torch.cat([target for _, target in bench.held_batches("test")])[:, None]
    assert len(hits) == 51
    assert record.accuracies.last.top1 == pytest.approx(100 * hits[:, 0].float().mean().item(), abs=1e-4)
    assert record.accuracies.last.top5 == pytest.approx(100 * hits[:, :5].any(1).float().mean().item(), abs=1e-4)
