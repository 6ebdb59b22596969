"""`speed` measures all that it promises. What it finds depends on the machine: no figure is checked here."""

from __future__ import annotations

import json

import pytest
import torch

import run_bench
from bench.engine.device import has_bf16
from bench.measure import speed
from reports import speed as speed_tables


@pytest.fixture
def quick_turns(monkeypatch):
    monkeypatch.setattr(speed, "TURNS", 2)
    monkeypatch.setattr(speed, "SPAN_S", 0.001)
    monkeypatch.setattr(speed, "measure_limits", lambda device: speed.Limits({"fp32": 100.0, "bf16": 200.0}, 10.0))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_speed_reports_every_case(precision, tmp_path, monkeypatch, capsys, quick_turns):
    monkeypatch.chdir(tmp_path)
    if precision == "bf16" and not has_bf16(torch.device("cpu")):
        pytest.skip("this CPU has no bf16")
    arguments = ["--set", "data={type: digits, train_images: 200}", "--set", "recipe.batch_size=16", "--device", "cpu"]
    pairs = ["--set", "pairs=[{student: resnet8, teacher: resnet14}]", "--set", f"precision={precision}"]
    common = ["speed", *arguments, *pairs, "--ablate", "--threads", "1"]
    assert run_bench.main([*common, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["student"], row["teacher"], row["method"]) for row in found["rows"]] == [
        ("resnet8", "", "none"),
        ("resnet8", "", "tfd"),
        ("resnet8", "resnet14", "kd"),
    ]
    for row in found["rows"]:
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert row["peak_share"] == pytest.approx(row["gflops_per_s"] / {"fp32": 100, "bf16": 200}[precision])
    assert set(found["ablations"]["resnet8 kd"]) == {
        "bf16", "channels_last", "fused optimizer", "data on the device", "folded teacher",
    }  # fmt: skip
    assert "folded teacher" not in found["ablations"]["resnet8 tfd"]
    assert list(found["together"]) == ["resnet8: none, tfd, kd"]
    assert not list(tmp_path.iterdir())  # nothing is trained
    page = speed_tables.markdown(found)
    assert all(f"| resnet8 | {teacher} | {method} |" in page for teacher, method in (("–", "tfd"), ("resnet14", "kd")))
    assert "| folded teacher | – | – |" in page


def test_several_teachers_are_compared_too(tmp_path, monkeypatch, capsys, quick_turns):
    monkeypatch.chdir(tmp_path)
    pair = "pairs=[{student: resnet8, teachers: [resnet14, resnet8x4]}]"
    methods = "methods=[{each_teacher: {method: {type: kd}}}]"
    changes = ["data={type: digits, train_images: 100}", "recipe.batch_size=16", "precision=fp32", pair, methods]
    given = [word for change in changes for word in ("--set", change)]
    assert run_bench.main(["speed", *given, "--device", "cpu", "--ablate", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["student"], row["teacher"]) for row in found["rows"]] == [("resnet8", "resnet14 + resnet8x4")]
    assert "folded teacher" in next(iter(found["ablations"].values()))


def test_limits_are_measured():
    limits = speed.measure_limits(torch.device("cpu"))
    assert set(limits.matrix_gflops_per_s) == {"fp32", "bf16"}
    assert limits.memory_gb_per_s > 0
