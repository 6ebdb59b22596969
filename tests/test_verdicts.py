"""Which cell is compared with which, and the sentences about it: by facts of the specs, never by the text of a label."""

from __future__ import annotations

import pytest
import synthetic

from bench.records.cell import Teacher
from bench.records.comparisons import Baseline
from reports import page, verdicts

KD = {"type": "kd", "temperature": 4.0, "weight": 0.9, "ce_weight": 0.1}
IMAGENET = {"type": "kd", "temperature": 1.0, "weight": 0.5, "ce_weight": 0.5}
TFD = {"type": "tfd", "weight": 0.005, "ramp_epochs": 0, "reduction": "mean", "direction": "top_down", "stages": None}
SEEDS = 5


def trained(methods, label="stored"):
    """Records of a pair: (spec, gain over none in points) for every method; steps of tfd cost little, those of kd much."""
    teacher = synthetic.teacher_cell()
    records = [synthetic.record(teacher, 74.3, synthetic.curves(240, 74.3))]
    for index, (spec, gain) in enumerate([({"type": "none"}, 0.0), *methods]):
        needs_teacher = "kd" in str(spec)
        for seed in range(SEEDS):
            cell = synthetic.cell("none", seed)
            changes = {"method": spec, "label": label, "needs": "teacher" if needs_teacher else "none"}
            changes["teacher"] = Teacher(cell=teacher.id, model={"type": "resnet110"}) if needs_teacher else None
            cell = cell.model_copy(update=changes)
            noise = (0.01, -0.02, 0.02, -0.01, 0.0)[(seed + index) % SEEDS]  # of mean 0, another for each method
            records.append(synthetic.record(cell, 60 + seed + gain + noise, synthetic.curves(240, 60.0), id=cell.id))
    return records


def sentences(methods, **changes):
    [pair] = synthetic.report(trained(methods, **changes)).pairs
    return pair, [sentence.text for sentence in verdicts.of_pair(pair)]


def test_the_only_kd_is_kd_whatever_its_arguments(tmp_path):
    """As in paper_table3, whose KD is kd[imagenet]."""
    pair, found = sentences([(IMAGENET, 2.0), (TFD, 1.0)])
    assert pair.baseline(Baseline.KD)["label"] == "kd[imagenet]"
    assert any(
        text.startswith("tfd, without a teacher, is 1.00 points worse than kd[imagenet] with its one teacher") for text in found
    )
    # beyond none's 24 s, kd: 19.2 s for 2 points beside a teacher of 120 s; tfd: .72 s for 1 point, never reached
    assert any(text.startswith("However many students share the teacher, kd[imagenet] costs more per point") for text in found)
    html = page.write(synthetic.filled(tmp_path, "table3", trained([(IMAGENET, 2.0), (TFD, 1.0)]))).page.read_text()
    assert "Gain over kd[imagenet]" in html
    assert "However many students share the teacher" in html


def test_every_tfd_has_a_break_even_sentence_of_its_own():
    _, found = sentences([(KD, 2.0), (TFD | {"ramp_epochs": 1}, 0.01), (TFD | {"weight": 0.1}, 0.0), (TFD, 3.0)])
    about = [text for text in found if "share" in text or "Break-even" in text]
    assert len(about) == 3
    assert any(text.startswith("Break-even of kd and tfd(ramp_epochs=1)") for text in about)
    assert any(
        text.startswith("However many students share the teacher, kd costs more per point gained than tfd (") for text in about
    )
    assert any("tfd(weight=0.1), by the cost" in text and "not both shown" in text for text in about)


def test_of_several_kds_the_one_at_its_defaults_is_kd_not_the_best():
    pair, found = sentences([(KD, 1.0), (KD | {"temperature": 8.0}, 3.0), (TFD, 2.0)])
    assert pair.baseline(Baseline.KD)["label"] == "kd"
    assert any(
        text.startswith("tfd, without a teacher, is 1.00 points better than kd with its one teacher (") for text in found
    )
    assert any("kd has today's default arguments, so it stands for kd here" in text for text in found)


def test_several_kds_without_the_defaults_are_no_baseline_and_the_report_says_so(tmp_path):
    methods = [(KD | {"temperature": 2.0}, 1.0), (KD | {"temperature": 8.0}, 3.0), (TFD, 2.0)]
    pair, found = sentences(methods)
    assert pair.baseline(Baseline.KD) is None
    assert pair.methods["gain_kd"].isna().all()
    assert any(text.startswith("Nothing is compared with kd: of kd(temperature=8.0) and kd(temperature=2.0)") for text in found)
    html = page.write(synthetic.filled(tmp_path, "several", trained(methods))).page.read_text()
    assert "Nothing is compared with kd" in html
    assert "Gain over kd" not in html


@pytest.mark.parametrize("label", ["none", "kd", "tfd"])
def test_stored_labels_decide_nothing(label):
    pair, _ = sentences([(KD, 2.0), (TFD, 1.0)], label=label)
    assert pair.methods["label"].tolist() == ["kd", "tfd", "none"]
    assert pair.methods["baseline"].tolist() == ["kd", None, "none"]
    assert pair.methods["family"].tolist() == ["kd", "tfd", "none"]


def test_an_old_record_without_a_later_argument_and_a_new_one_are_one_method():
    old = {key: TFD[key] for key in ("type", "weight", "ramp_epochs")}
    records = trained([(KD, 2.0), (TFD, 1.0)])
    olds = [record for record in records if record.cell.method["type"] == "tfd" and record.cell.seed < 2]
    kept = [record for record in records if record not in olds]
    for record in olds:
        cell = record.cell.model_copy(update={"method": old})
        kept.append(synthetic.record(cell, record.accuracies.last.top1, id=cell.id))
    [pair] = synthetic.report(kept).pairs
    assert pair.methods.set_index("label")["n"].to_dict() == {"kd": SEEDS, "tfd": SEEDS, "none": SEEDS}


def test_no_report_compares_the_text_of_a_label():
    """The names of methods as text stand in the reports as the families of the two baselines and of tfd, and in the README."""
    from test_house import ROOT

    for path in (ROOT / "reports").rglob("*.py"):
        if path.name == "style.py":  # where users choose methods by the names that they see
            continue
        text = path.read_text(encoding="utf-8")
        assert '["label"] ==' not in text, path
        assert '["label"].isin' not in text, path
        assert '["label"].str' not in text, path
