"""The probe: what it counts is right, what it times is complete. Nothing here fails because the machine is slow."""

from __future__ import annotations

import sys
import types

import pytest
import small
import synthetic
import torch

import run_bench
from bench.engine.assemble import assemble
from bench.engine.flops import count_flops
from bench.measure import meters, probe
from bench.measure.meters import LiveTensors, OtherWork
from bench.measure.probe import Probe
from bench.plan import estimate as planning
from bench.records.folders import ResultsFolder
from bench.records.options import Options

CPU = Options(device="cpu", threads=1)


@pytest.fixture
def quick_probe(monkeypatch):
    monkeypatch.setattr(probe, "TURNS", 3)
    monkeypatch.setattr(probe, "SPAN_S", 0.001)
    monkeypatch.setattr(probe, "ENERGY_SPAN_S", 0.001)
    monkeypatch.setattr(probe, "joules", lambda steps, device: steps() or 6.0)


def test_every_cost_of_a_grid_is_measured_once(tiny, tmp_path, quick_probe):
    grid = tiny(
        methods=["none", "kd", "tfd", {"ft": {"prepare_epochs": 1}}],
        seeds=[0, 1],
        pairs=[{"student": "resnet8", "teacher": "resnet14"}],
    )
    folder = ResultsFolder(tmp_path).grid(grid.name)  # nothing is trained, the teacher neither
    measured = list(probe.measure(grid.cells, folder, CPU))
    labels = ["ft(prepare_epochs=1)", "kd", "none", "none", "tfd"]  # once for both seeds, and the teacher's own
    assert sorted(each.label for each in measured) == labels
    assert {each.key for each in measured} == {cell.cost_key for cell in grid.cells}
    by_label = {each.label: each for each in measured}
    for each in measured:
        assert set(each.parts) == {"data", "student", "teacher", "method", "backward", "optimiser"}
        assert 0 < each.step.low_ms <= each.step.median_ms <= each.step.high_ms
        assert (each.prepare_step is not None) == (each.label.startswith("ft"))
        assert 0 < each.energy_j_per_step <= 6
        assert (each.energy_j_per_prepare_step is not None) == (each.label.startswith("ft"))
        assert each.inference is not None
        assert each.latency is not None
        assert 0 < each.peak_mib < each.host_peak_mib
        assert 0 <= each.busy_percent <= 100
        timings = [each.step, *each.parts.values(), *filter(None, [each.prepare_step, each.teacher_alone])]
        assert {len(timing.turns_ms) for timing in timings} == {3}
        assert (each.teacher_alone is not None) == (each.teacher == "resnet14")
    sessions = {label: {each.session for each in measured if each.student == label} for label in ("resnet8", "resnet14")}
    assert [len(found) for found in sessions.values()] == [1, 1]  # all methods of the student in turn
    assert sessions["resnet8"] != sessions["resnet14"]
    assert by_label["kd"].parts["teacher"].median_ms > 0
    assert by_label["tfd"].parts["teacher"].median_ms == 0
    assert folder.costs()[0] == sorted(measured, key=lambda each: each.key)
    assert not probe.missing(grid.cells, measured, measured[0].machine)
    assert not probe.missing(grid.cells, measured, measured[0].machine, threads=1)
    assert probe.missing(grid.cells, measured, measured[0].machine, threads=2) == grid.cells
    elsewhere = measured[0].machine.model_copy(update={"cpu": "another"})
    assert probe.missing(grid.cells, measured, elsewhere) == grid.cells
    new = probe.missing(grid.cells, [each for each in measured if each.label != "tfd"], measured[0].machine)
    assert {cell.label for cell in new if cell.student["type"] == "resnet8"} == {"none", "kd", "tfd", "ft(prepare_epochs=1)"}
    assert all(cell.student["type"] == "resnet8" for cell in new)  # with what it is compared to, and no more


def test_the_estimate_includes_the_preparation(tiny):
    grid = tiny(methods=[{"ft": {"prepare_epochs": 3}}], pairs=[{"student": "resnet8", "teacher": "resnet14"}])
    ft = grid.cells[-1]
    probed = synthetic.cost(ft, step_ms=360_000.0)
    probed = probed.model_copy(update={"prepare_step": synthetic.timing(3_600_000.0)})
    # 40 images in batches of 16 are 3 steps an epoch: 2 epochs of 0.1 h a step, and 3 of 1 h
    assert "about 9.6 hours one after the other on Example 3000 x2" in planning.estimate([ft], grid.shapes, [probed])


def test_a_machine_that_only_submits_jobs_is_not_measured(tmp_path, capsys):
    run = ["run", small.write_grid(tmp_path, methods=["none"]), "--results", str(tmp_path / "results"), "--device", "cpu"]
    assert run_bench.main([*run, "--cluster", "debug", "--no-cost"]) == 0
    assert "report: " in capsys.readouterr().out  # of accuracies alone
    assert run_bench.main([*run, "--cluster", "slurm", "--gpus", "0"]) == 0  # nothing is left, hence nothing submitted
    printed = capsys.readouterr().out
    assert "costs are not measured here" in printed
    assert "report: " in printed
    assert ResultsFolder(tmp_path / "results").grid("small").costs() == ([], [])


def test_other_work_is_that_of_other_processes(monkeypatch):
    cores = [types.SimpleNamespace(user=u, nice=0.0, system=s, steal=0.0, idle=0.0) for u, s in ((100.0, 10.0), (50.0, 5.0))]
    moment = {"wall": 1000.0, "own": 7.0}
    monkeypatch.setattr(meters.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(meters.psutil, "cpu_times", lambda percpu: cores)
    monkeypatch.setattr(meters, "time", types.SimpleNamespace(
        process_time=lambda: moment["own"], perf_counter=lambda: moment["wall"]))  # fmt: skip
    others = OtherWork()
    moment |= {"wall": 1010.0, "own": 7.0 + 9.0}
    cores[0] = types.SimpleNamespace(user=108.0, nice=0.0, system=12.0, steal=0.0, idle=0.0)  # 10 s busy
    cores[1] = types.SimpleNamespace(user=53.0, nice=0.0, system=5.0, steal=2.0, idle=5.0)  # 5 s busy or stolen
    assert others.percent() == pytest.approx(100 * (15 - 9) / 20)


def test_the_probe_leaves_the_trainee_as_it_was(tiny, tmp_path, quick_probe):
    grid = tiny(methods=["pskd"])
    bench = assemble(grid.cells, ResultsFolder(tmp_path).grid(grid.name), CPU)
    [trainee] = bench.trainees.values()
    before = {name: value.clone() for name, value in trainee.state_dict().items()}
    probed = Probe(grid.cells[0], bench)
    probed.calibrate()
    probed.time_parts()
    count_flops(bench, trainee)
    assert all(torch.equal(before[name], value) for name, value in trainee.state_dict().items())


def test_flops_are_those_of_a_count_by_hand(tiny, tmp_path):
    grid = tiny(methods=["none", "tfd"])
    bench = assemble(grid.cells, ResultsFolder(tmp_path).grid(grid.name), CPU)
    # resnet8 on 1x8x8: multiply-adds of stem, stages and classifier, twice
    stem, first = 64 * 9 * 16, 2 * 64 * 9 * 16 * 16
    second = 16 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32)
    third = 4 * (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64)
    forward = 2 * (stem + first + second + third + 640)
    none, tfd = (count_flops(bench, trainee) for trainee in bench.trainees.values())
    assert none.inference == forward
    # backward: twice the forward, less the gradient of the image, for a batch of 16
    assert none.step == 16 * (3 * forward - 2 * stem)
    assert tfd.step == none.step  # its term has no matrix products
    assert none.teacher_forward == tfd.teacher_forward == 0


def test_live_tensors_count_what_is_alive_together():
    with LiveTensors() as live:
        a = torch.ones(1000)  # 4,000 bytes
        b = a + 1  # 8,000 together
        del a
        c = b.view(10, 100) * 2  # a view costs nothing; 8,000 again
        c.add_(1)  # in place, nothing
        del b, c
        torch.ones(500)
    assert live.peak_bytes == 8000


@pytest.mark.parametrize(("readings", "expected"), [(({0: 3.0}, {0: 2.0}, {0: 0.5}), 5.5), (({}, None, None), None)])
def test_energy_adds_all_meters_or_says_nothing(readings, expected, monkeypatch):
    class Monitor:
        def __init__(self, gpu_indices):
            assert gpu_indices == []  # the CPU's work takes no GPU's energy

        def begin_window(self, key):
            self.key = key

        def end_window(self, key):
            assert key == self.key
            return types.SimpleNamespace(gpu_energy=readings[0], cpu_energy=readings[1], dram_energy=readings[2])

    monkeypatch.setitem(sys.modules, "zeus", types.ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.monitor", types.SimpleNamespace(ZeusMonitor=Monitor))
    ran = []
    assert meters.joules(lambda: ran.append(1), torch.device("cpu")) == expected
    assert ran == [1]


def test_energy_without_zeus_is_not_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus", None)
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    assert meters.joules(lambda: None, torch.device("cpu")) is None


def test_without_zeus_a_gpus_own_counter_is_read(monkeypatch):
    counted, ran = iter([5_000, 9_500]), []
    fake = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: next(counted) if gpu == "GPU-4711" else None,
    )
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="4711"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: ran.append("waited"))
    assert meters.joules(lambda: ran.append("steps"), torch.device("cuda:0")) == 4.5
    assert ran == ["steps", "waited"]  # the counter is read when the steps are done
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert meters.joules(lambda: None, torch.device("cuda:0")) is None
