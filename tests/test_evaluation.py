"""What an evaluation finds, against NumPy, and what a record keeps of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bench.engine.evaluation import BINS, evaluate
from bench.engine.train import train
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from methods.base import Output

CPU = torch.device("cpu")


class Table(nn.Module):
    """Gives the logits that it is shown as images."""

    def forward(self, image):
        return Output(image, image, (), (), image)


def test_likelihood_and_calibration_by_hand():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(0, 2, (101, 10)), rng.integers(0, 10, 101)
    batches = zip(torch.tensor(logits).split(25), torch.tensor(target).split(25), strict=True)
    found = evaluate(Table(), batches, "fp32", CPU)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    right, confidence = p.argmax(1) == target, p.max(1)
    assert found.correct.tolist() == right.tolist()
    assert found.top1 == 100 * right.sum() / 101
    assert found.nll == pytest.approx(-np.log(p[np.arange(101), target]).mean())
    error = 0.0
    for low in np.arange(BINS) / BINS:
        within = (confidence >= low) & (confidence < low + 1 / BINS)
        error += abs(right[within].sum() - confidence[within].sum()) / 101 if within.any() else 0
    assert found.calibration_error == pytest.approx(100 * error)


def test_a_sure_network_is_in_the_last_bin():
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    found = evaluate(Table(), [(logits, torch.tensor([0, 0]))], "fp32", CPU)
    assert (found.top1, found.calibration_error) == (50.0, 50.0)


def test_a_record_keeps_what_the_last_epoch_gave(tiny, tmp_path):
    [cell] = tiny(recipe={"name": "digits", "epochs": 1, "batch_size": 16}).cells
    folder = ResultsFolder(tmp_path).grid("tiny")
    [record] = train([cell], folder, Options(device="cpu", threads=1))
    assert record.train_top1 is not None
    assert record.train_top1 * 40 / 100 == pytest.approx(round(record.train_top1 * 40 / 100))  # of 40 images
    assert record.test_nll > 0
    assert 0 <= record.test_calibration_error <= 100
    assert folder.cell(cell.id).correct(record).mean() * 100 == pytest.approx(record.accuracies.last.top1)
