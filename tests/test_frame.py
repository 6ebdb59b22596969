"""Records to the tidy frame: names, pairs, costs, and records that cannot be used."""

from __future__ import annotations

import math

import numpy as np
import pytest
import synthetic

import reports
from bench.records.cell import Teacher
from bench.records.record import Timing
from reports.frame import SHARED_BY, arguments, by_pair, places, tidy, with_costs
from reports.published import read as read_published
from reports.reading import read, sound
from reports.tables.published import beside_published

GRID = "demo"


@pytest.fixture(scope="module")
def records():
    return synthetic.draw(synthetic.TRUTH, 5, np.random.default_rng(1), missing=[("kd", 3)])


def test_columns_are_documented_and_pairs_follow_the_rule(records):
    frame = synthetic.frame(records)
    assert list(frame.columns) == list(reports.COLUMNS)
    assert list(frame[frame["student"] == "resnet110"]["role"]) == ["teacher"]
    rows = by_pair(frame)
    assert set(rows["pair"]) == {"resnet110 → resnet20"}
    assert rows.groupby("label").size().to_dict() == {"none": 5, "ls": 5, "tfd": 5, "tffd": 5, "kd": 4, "fitnets": 5}


def test_teacher_free_rows_belong_to_every_pair_of_their_student():
    two = [("resnet20", "resnet110"), ("resnet20", "wrn_40_2")]
    seeds = np.random.default_rng(2)
    rows = by_pair(synthetic.frame(synthetic.draw({"none": 0, "tfd": 0, "kd": 1}, 2, seeds, pairs=two)))
    assert rows.groupby(["pair", "label"]).size().unstack().to_dict("index") == {
        "resnet110 → resnet20": {"none": 2, "tfd": 2, "kd": 2},
        "wrn_40_2 → resnet20": {"none": 2, "tfd": 2, "kd": 2},
    }
    alone = by_pair(
        synthetic.frame([synthetic.record(synthetic.cell("none", 0), 60), synthetic.record(synthetic.cell("tfd", 0), 61)])
    )
    assert list(alone["pair"].unique()) == ["resnet20"]


def test_a_cost_is_steps_times_the_probes_step_with_the_teacher_three_ways(records):
    kd = synthetic.frame(records).query("label == 'kd'").iloc[0]  # 2400 steps of 18 ms; the teacher 2400 of 50 ms
    assert kd["train_s"] == pytest.approx(43.2)
    assert kd["teacher_s"] == pytest.approx(120.0)
    assert kd["with_teacher_s"] == pytest.approx(163.2)
    assert kd["shared_teacher_s"] == pytest.approx(43.2 + 120 / SHARED_BY)  # whatever this grid's number of students
    assert (kd["flops"], kd["teacher_flops"]) == (2400 * 250, 2400 * 500)


def test_a_time_of_zero_gives_no_speed(records):
    costs = [synthetic.cost(record.cell) for record in records]
    costs[0] = costs[0].model_copy(update={"inference": Timing(turns_ms=(0.0,) * 6)})
    frame = with_costs(tidy(records), costs)
    assert frame["images_per_s"].isna().sum() == (frame["cost_key"] == costs[0].key).sum() > 0


def test_a_preparation_phase_costs():
    cell = synthetic.cell("ls", 0)
    cost = synthetic.cost(cell)
    cost = cost.model_copy(update={"prepare_step": synthetic.timing(4.0), "energy_j_per_step": 3.0})
    record = synthetic.record(cell, 60, steps=1000, prepare_steps=500)
    row = synthetic.frame([record], [cost]).iloc[0]
    assert row["train_s"] == pytest.approx(1000 * 0.010 + 500 * 0.004)
    assert math.isnan(row["energy_kj"])  # that of the preparation was not measured
    measured = cost.model_copy(update={"energy_j_per_prepare_step": 2.0})
    assert synthetic.frame([record], [measured])["energy_kj"].item() == pytest.approx((1000 * 3 + 500 * 2) / 1000)
    plain = synthetic.record(cell, 60, steps=1000)
    assert synthetic.frame([plain], [cost])["energy_kj"].item() == pytest.approx(3.0)


def test_a_teacher_that_the_user_supplies_has_an_unknown_cost():
    cell = synthetic.cell("kd", 0, teacher="resnet110")
    cell = cell.model_copy(update={"teacher": cell.teacher.model_copy(update={"cell": None, "weights_sha256": "ab" * 32})})
    row = synthetic.frame([synthetic.record(cell, 70)]).iloc[0]
    assert row["teacher"] == "resnet110 (weights abababab)"
    assert row["train_s"] > 0
    assert math.isnan(row["teacher_s"])
    assert math.isnan(row["with_teacher_s"])
    assert math.isnan(row["teacher_flops"])


def test_hardware_is_never_pooled(records):
    other = synthetic.MACHINE.model_copy(update={"cpu": "Other 9"})
    costs = [synthetic.cost(record.cell) for record in records]
    costs += [synthetic.cost(record.cell, other, step_ms=1.0) for record in records if record.cell.label != "kd"]
    assert [name.split(" x")[0] for name in places(costs)] == ["Example 3000", "Other 9"]
    first, second = (with_costs(tidy(records), costs, where) for where in places(costs))
    assert first["where"].nunique() == second["where"].nunique() == 1
    assert first.query("label == 'none' and student == 'resnet20'")["step_ms"].unique() == [10.0]
    assert second.query("label == 'kd'")["train_s"].isna().all()


def test_names_tell_apart_what_differs_and_nothing_else():
    def variant(weight, seed):
        cell = synthetic.cell("tfd", seed)
        return synthetic.record(cell.model_copy(update={"method": {"type": "tfd", "weight": weight, "ramp_epochs": 0}}), 60)

    def named(records):
        records = [record.model_copy(update={"id": record.cell.id}) for record in records]
        return sorted(set(tidy(records)["label"]))

    assert named([variant(0.005, 0), variant(0.005, 1)]) == ["tfd"]
    assert named([variant(0.005, 0), variant(0.01, 0)]) == ["tfd", "tfd(weight=0.01)"]


def test_a_newer_argument_at_its_default_splits_no_method():
    def of(seed, later):
        cell = synthetic.cell("tfd", seed)
        method = {"type": "tfd", "weight": 0.005} | later
        return cell.model_copy(update={"method": method, "added_later": dict.fromkeys(later, False)})

    old, new, other = of(0, {}), of(1, {"before_activation": False}), of(2, {"before_activation": True})
    frame = tidy([synthetic.record(cell, 60, id=cell.id) for cell in (old, new)])
    assert frame["label"].unique().tolist() == ["tfd"]
    assert frame["method_id"].nunique() == 1
    assert frame["arguments"].nunique() == 1
    different = tidy([synthetic.record(cell, 60, id=cell.id) for cell in (old, new, other)])
    assert different["label"].unique().tolist() == ["tfd", "tfd(before_activation=True)"]
    assert different["method_id"].nunique() == 2


def test_arguments_of_parts_go_by_their_methods():
    kd = {"type": "kd", "temperature": 4.0}
    assert arguments({"type": "sum", "parts": [kd, {"type": "logit_std", "method": {**kd, "temperature": 2.0}}]}) == {
        "kd.temperature": 4.0,
        "kd2.temperature": 2.0,
    }


def test_data_of_the_users_own_go_by_the_name_they_were_given():
    def own(path, **name):
        cell = synthetic.cell("none", 0)
        cell = cell.model_copy(update={"data": {"type": "npz", "path": path, "digest": "ab", **name}})
        return synthetic.record(cell, 70, id=cell.id)

    frame = synthetic.frame([own("/here/cifar100.npz", name="cifar100")])
    assert frame["data"].tolist() == ["cifar100"]
    assert frame["id"].item().startswith("cifar100-resnet20-none-s0-")
    assert len(beside_published(frame, read_published()).frame) > 0
    first, second = own("/here/a.npz"), own("/there/b.npz")
    assert first.id == second.id
    assert set(synthetic.frame([first, second.model_copy(update={"id": "other"})])["data"]) == {"npz"}


def test_one_cell_with_two_results_is_kept_out_and_named(records):
    twin = synthetic.record(records[2].cell, 12.0)
    good, problems = sound([*records, records[1], twin])
    assert len(good) == len(records) - 1
    assert [problem.path for problem in problems] == [twin.id]
    nan = records[1].accuracies.last.model_copy(update={"top1": math.nan})
    broken = records[1].model_copy(update={"accuracies": records[1].accuracies.model_copy(update={"last": nan})})
    assert sound([broken])[1][0].reason.startswith("an accuracy is not a number")


def test_records_that_left_the_grid_are_left_out(tmp_path, records):
    folder = synthetic.filled(tmp_path, GRID, records)
    manifest = folder.manifest()
    gone = manifest["cells"].pop()
    folder.write_manifest(manifest)
    kept, problems = read(folder)
    assert gone["id"] not in {record.id for record in kept}
    assert [problem.reason for problem in problems] == ["no longer part of the grid; left out"]


def test_load_for_notebooks(tmp_path, records):
    synthetic.filled(tmp_path, GRID, records)
    assert len(reports.load(tmp_path)) == len(records)
    synthetic.filled(tmp_path, "second", records[:2])
    with pytest.raises(ValueError, match="demo, second"):
        reports.load(tmp_path)
    assert len(reports.load(tmp_path, "second")) == 2


def test_curves_gains_and_turns_for_notebooks(tmp_path, records):
    synthetic.filled(tmp_path, GRID, records)
    curves = reports.load_curves(tmp_path)
    assert len(curves) == sum(record.epochs for record in records)
    last = curves[curves["epoch"] == 240].set_index("id")["test_top1"]
    for record in records:
        assert last[record.id] == pytest.approx(record.accuracies.last.top1, abs=1e-4)
    assert {"loss_ce", "lr", "label", "seed"} <= set(curves)

    found = reports.load_gains(tmp_path)
    assert list(found) == list(reports.GAIN_COLUMNS)
    [pair] = synthetic.report(records).pairs
    for against, suffix in (("none", ""), ("kd", "_kd")):
        rows = found[found["against"] == against].set_index("label")
        expected = pair.methods[pair.methods["word" + suffix].notna()].set_index("label")
        assert list(rows.index) == list(expected.index)
        assert list(rows["gain"]) == list(expected["gain" + suffix])
        assert list(rows["low"]) == list(expected["low" + suffix])

    turns = reports.load_turns(tmp_path)
    assert list(turns) == list(reports.TURN_COLUMNS)
    step = turns[(turns["label"] == "kd") & (turns["quantity"] == "step")]
    assert list(step["ms"]) == list(synthetic.timing(18.0).turns_ms)
    assert "optimizer" in set(turns["quantity"])
    assert reports.load_by_image(tmp_path) == {}


@pytest.mark.parametrize(("stated_s", "stated_flops"), [(None, None), (500.0, 1e6)])
def test_a_teacher_that_the_user_supplies_costs_what_he_states(tmp_path, stated_s, stated_flops):
    supplied = Teacher(model={"type": "resnet110"}, weights_sha256="a" * 64, train_s=stated_s, train_flops=stated_flops)
    cells = [synthetic.cell("none", seed) for seed in range(2)]
    cells += [synthetic.cell("kd", seed, teacher="resnet110").model_copy(update={"teacher": supplied}) for seed in range(2)]
    synthetic.filled(tmp_path, GRID, [synthetic.record(cell, 70.0) for cell in cells])
    frame = reports.load(tmp_path, GRID).set_index("label")
    distilled = frame.loc["kd"]
    assert (frame.loc["none", "teacher_s"] == 0).all()
    assert (distilled["users"] == 2).all()
    if stated_s is None:
        assert distilled[["teacher_s", "teacher_flops", "with_teacher_s", "shared_teacher_s"]].isna().all(axis=None)
    else:
        assert (distilled["teacher_s"] == stated_s).all()
        assert (distilled["teacher_flops"] == stated_flops).all()
        np.testing.assert_allclose(distilled["with_teacher_s"], distilled["train_s"] + 500)
        np.testing.assert_allclose(distilled["shared_teacher_s"], distilled["train_s"] + 50)
