"""What a GPU must show, and the rehearsal of the driver that shows the rest of it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from gpu_data import pack, unpack
from step_cases import CASES, assembled

from bench.engine.capture import CudaGraphs, StepRunner

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


@needs_cuda
@pytest.mark.parametrize("name", CASES)
def test_a_step_on_a_gpu_can_be_recorded(name, tiny, tmp_path):
    case = CASES[name]
    assembly = assembled(case, tiny, tmp_path, "cuda")
    runner = StepRunner(assembly.step(), CudaGraphs(assembly.device))
    runner.step.train()
    runner.step.set_lr(0.01)
    for epoch in (0, 4, 9):
        for batch in assembly.stream(next(iter(assembly.trainees.values()))).epoch(epoch):
            runner(batch, preparing=case.preparing)
    assert runner.path == "graph", runner.path_reason


def test_the_driver_runs_on_a_cpu(repository, tmp_path):
    command = [sys.executable, "tests/gpu_driver.py", "--device", "cpu", "--tiny", "--out", str(tmp_path), "--limit", "300"]
    ran = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=400)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert ran.returncode == 0, [line for line in lines if line.get("code")] or ran.stderr
    assert not [line for line in lines if "error" in line or ("skipped" in line and line["part"] != "kernels")]
    facts = {
        part: [line for line in lines if line["part"] == part and "code" not in line] for part in {x["part"] for x in lines}
    }
    assert all(line["same"] for line in facts["same_as_cpu"])
    assert {line["path"] for line in facts["capture"]} == {"graph"}
    assert all(line["repeats"] and line["resumes"] for line in facts["resume"])
    assert {line["ran"] for line in facts["speed"] if line["path"] == "graph"} == {"graph"}
    assert len([line for line in lines if line["part"] == "real" and "top1" in line]) == 4
    assert (tmp_path / "results.tar.gz").exists()


def test_a_part_that_fails_costs_its_own_lines_only(repository, tmp_path):
    command = [sys.executable, "tests/gpu_driver.py", "--device", "cuda:77", "--tiny", "--out", str(tmp_path)]
    ran = subprocess.run([*command, "--only", "imports", "energy"], cwd=repository, capture_output=True, text=True, timeout=100)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert ran.returncode != 0
    assert [line["part"] for line in lines if "code" in line] == ["imports", "energy"]
    assert lines[-1]["part"] == "driver"


def test_images_travel_in_parts(tmp_path):
    draws = np.random.default_rng(0)
    arrays = {"train_images": draws.integers(0, 256, (2600, 8, 8, 3), dtype=np.uint8), "train_labels": np.arange(2600) % 7}
    arrays |= {"test_images": draws.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), "test_labels": np.arange(60) % 7}
    np.savez(tmp_path / "images.npz", **arrays)
    parts = pack(tmp_path / "images.npz", tmp_path / "packed", 2)
    assert [len(list(part.glob("*.webp"))) for part in parts] == [1, 2]
    unpack(tmp_path / "again.npz", parts[::-1])
    again = np.load(tmp_path / "again.npz")
    assert all(np.array_equal(again[name], value) for name, value in arrays.items())
    with pytest.raises(FileNotFoundError, match="is in none of"):
        unpack(tmp_path / "again.npz", parts[:1])
