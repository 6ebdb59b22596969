"""Answers by test image: kept with each record, and what reports make of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import synthetic

from bench.records import upkeep
from bench.records.correct import packed, unpacked
from bench.records.folders import ResultsFolder
from bench.records.problems import DamagedError
from bench.records.record import Record
from reports import page
from reports.reading import ByImage
from reports.tables.by_image import by_image

IMAGES = 1001


def kept(record: Record, correct: np.ndarray) -> tuple[Record, ByImage]:
    """The record of a network that has these images right, and the answers."""
    raw = packed(correct)
    last = record.accuracies.last.model_copy(update={"top1": 100 * correct.mean(), "top5": 100.0})
    accuracies = record.accuracies.model_copy(update={"last": last})
    curves = synthetic.digest_of(synthetic.curves(record.epochs, last.top1).encode())
    update = {
        "accuracies": accuracies,
        "curves_sha256": curves,
        "correct_sha256": synthetic.digest_of(raw),
        "test_samples": len(correct),
    }
    return record.model_copy(update=update), ByImage(raw, len(correct))


@pytest.fixture(scope="module")
def trained() -> tuple[list[Record], dict[str, ByImage]]:
    """Networks that share which images are hard; kd has 3 points more than none, tfd as many as none."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(0, 1, IMAGES)
    records, answers = [], {}
    for record in synthetic.draw({"none": 0.0, "tfd": 0.0, "kd": 3.0}, 5, rng):
        share = 0.7 + 0.03 * (record.cell.label == "kd")
        right = hard + rng.normal(0, 0.1, IMAGES) < share
        new, found = kept(record, right)
        records.append(new)
        answers[new.id] = found
    return records, answers


def test_bits_of_images_come_back(trained):
    correct = np.random.default_rng(1).random(IMAGES) < 0.7
    raw = packed(correct)
    assert len(raw) == 126
    assert (unpacked(raw, IMAGES, 100 * correct.mean()) == correct).all()
    for bad, images, top1 in ((raw[:-1], IMAGES, 70.0), (raw, None, 70.0), (raw, IMAGES, 100 * correct.mean() + 0.1)):
        with pytest.raises(ValueError, match=r"bytes cannot hold|do not give"):
            unpacked(bad, images, top1)
    with pytest.raises(ValueError, match="do not give"):
        unpacked(raw[:-1] + b"\xff", IMAGES, 100 * correct.mean())


def test_the_table_by_hand(trained):
    records, answers = trained
    [pair] = synthetic.report(records, by_image=answers).pairs
    table = by_image(pair)
    rows = table.frame.set_index(["label", "against"])
    by_seed = {
        label: np.array(
            [answers[r.id].correct for r in records if r.cell.label == label and r.cell.student["type"] == "resnet20"]
        )
        for label in ("none", "kd")
    }
    kd, none = by_seed["kd"], by_seed["none"]
    row = rows.loc[("kd", "none")]
    assert row["gain"] == pytest.approx(100 * (kd.mean() - none.mean()))
    assert row["gain"] == pytest.approx(pair.methods.set_index("label").loc["kd", "gain"])
    assert row["seeds"] == pytest.approx(100 * (kd.mean(1) - none.mean(1)).std(ddof=1) / math.sqrt(5))
    assert row["only_ours"] - row["only_theirs"] == pytest.approx(row["gain"])
    assert row["low"] < row["gain"] < row["high"]
    teacher = next(answers[r.id].correct for r in records if r.cell.student["type"] == "resnet110")
    assert row["agreement"] == pytest.approx(100 * (kd == teacher).mean())
    assert rows.loc[("tfd", "kd"), "n"] == 5
    assert "standard error of up to" in table.note


def test_older_records_have_no_table_and_are_valid(trained, tmp_path):
    records = synthetic.draw({"none": 0.0, "kd": 1.0}, 2, np.random.default_rng(0))
    folder = synthetic.filled(tmp_path, "old", records)
    assert upkeep.verify(folder) == []
    assert folder.cell(records[0].id).correct(records[0]) is None
    assert "by test image" not in page.write(folder).page.read_text()


def test_the_file_is_checked_moved_and_kept(trained, tmp_path):
    records, answers = trained
    folder = synthetic.filled(tmp_path / "ours", "new", records, by_image=answers)
    assert upkeep.verify(folder) == []
    html = page.write(folder).page.read_text()
    assert "by test image" in html
    assert "no seed removes" in html
    assert upkeep.merge(ResultsFolder(tmp_path / "theirs"), folder.results) == (len(records), [])
    copy = ResultsFolder(tmp_path / "theirs").grid("new")
    copy.clean(weights=True)
    assert upkeep.verify(copy) == []

    one, other = records[0], records[1]
    path = synthetic.record_path(folder, one).with_name("correct.bin")
    path.write_bytes(bytes([path.read_bytes()[0] ^ 128]) + path.read_bytes()[1:])
    synthetic.record_path(folder, other).with_name("correct.bin").unlink()
    with pytest.raises(DamagedError, match="not the one"):
        folder.cell(one.id).correct(one)
    assert sorted(problem.reason for problem in upkeep.verify(folder)) == [
        "correct.bin is missing",
        "correct.bin is not the one that the record names",
    ]
    assert "left out of the comparison by image" in page.write(folder).page.read_text()
