"""Each defect that was once found in reports, with a small input and the right value."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import synthetic
from matplotlib.image import imread

import reports
from bench.errors import UserError
from bench.records.cell import Teacher
from bench.records.comparisons import Family
from bench.records.naming import abbreviated
from bench.records.record import Timing
from bench.records.requests import rebuilt
from bench.stats import SHOWN, CostWord, Word
from reports import overall, page, verdicts
from reports.break_even import frame_of
from reports.design import Design, Missing
from reports.figures.accuracy_cost import accuracy_cost
from reports.figures.gains import forest
from reports.figures.learning_curves import learning_curves
from reports.figures.profiles import profiles
from reports.figures.published import published
from reports.reading import Curve
from reports.tables import tables_of_pair
from reports.tables.accuracy import accuracy
from reports.tables.across_pairs import ranks_of
from reports.tables.compared import compared
from reports.tables.table import p_value

RNG = np.random.default_rng


def runs(name, gains, teacher=None, student="resnet20", **changes):
    """Records of one method; none has 60, 61, 62, ... %."""
    records = []
    for seed, gain in enumerate(gains):
        cell = synthetic.cell(name, seed, student, teacher and "resnet110")
        if teacher:
            model = {"type": "resnet110"} if teacher != "self" else {"type": student}
            supplier = synthetic.teacher_cell() if teacher != "self" else synthetic.cell("none", 1000, student)
            cell = cell.model_copy(update={"teacher": Teacher(cell=supplier.id, model=model)})
        cell = cell.model_copy(update=changes)
        records.append(synthetic.record(cell, 60 + seed + gain, id=cell.id))
    return records


def texts(report):
    return [sentence.text for pair in report.pairs for sentence in verdicts.of_pair(pair)]


def row(report, label):
    return report.summary.set_index("label").loc[label]


NONE = runs("none", [0.0] * 5)
TEACHER = synthetic.record(synthetic.teacher_cell(), 74.3)
NOISE = np.array([0.1, -0.1, 0.2, -0.2, 0.0])


# Nothing false


def test_untested_is_not_a_null_result():
    pairs = [("resnet20", "resnet110"), ("resnet32", "resnet110")]
    report = synthetic.report(synthetic.draw({"none": 0, "kd": 1}, 1, RNG(0), pairs=pairs))
    [sentence] = overall.of_methods(report.over)
    assert "not tested" in sentence.text
    assert "no difference" not in sentence.text
    assert set(report.over["word"]) == {Word.NOT_TESTED}


def test_runs_without_a_teacher_count_once_and_recipes_are_no_pairs():
    pairs = [("resnet20", f"resnet{depth}") for depth in (56, 110, 32)]
    report = synthetic.report(synthetic.draw({"none": 0, "tfd": 3, "kd": 1}, 5, RNG(0), pairs=pairs))
    assert report.over["label"].tolist() == ["kd"]  # tfd ran on one student
    assert report.over["pairs"].tolist() == [3]
    assert set(report.summary["comparisons"].dropna()) == {1 + 3 + 3}  # tfd once, kd and tfd against kd with each teacher
    recipes = [
        record for epochs in (240, 300) for record in synthetic.draw({"none": 0, "tfd": 1}, 3, RNG(epochs), epochs=epochs)
    ]
    assert synthetic.report(recipes).over.empty


def test_ranks_count_each_student_once():
    truth = dict.fromkeys(("none", "ls", "tfd", "kd", "at"), 0.0)
    shared = [(student, f"t{index}") for student in ("resnet20", "resnet32") for index in range(6)]
    assert ranks_of(synthetic.report(synthetic.draw(truth, 2, RNG(1), pairs=shared))) == []
    six = [(f"resnet{depth}", f"t{index}") for depth in (8, 14, 20, 26, 32, 38) for index in range(2)]
    [found] = ranks_of(synthetic.report(synthetic.draw(truth, 2, RNG(1), pairs=six)))
    assert found.found.students == 6


def test_without_spread_there_is_no_interval_no_p_and_nothing_detectable():
    report = synthetic.report([*NONE[:3], *runs("ls", [1.0] * 3)])
    ls = row(report, "ls")
    assert ls["word"] == Word.OPEN
    assert ls[["low", "high", "p", "p_adjusted", "p_equivalent", "detectable"]].isna().all()
    [pair] = report.pairs
    assert "0.00 points" not in " ".join([*texts(report), verdicts.in_short(pair.methods)])


def test_equal_accuracies_have_no_interval_of_width_zero():
    [pair] = synthetic.report(runs("none", [0.0, -1.0, -2.0])).pairs  # 60 % three times
    assert math.isnan(pair.methods["half"].item())
    assert accuracy(pair).rows()[0][2] == "60.00"


@pytest.mark.parametrize("difference", [0.1, 0.0])
def test_constants_are_never_equivalent(difference):
    report = synthetic.report([*NONE, *runs("ls", [difference] * 5)])
    assert row(report, "ls")["word"] == Word.OPEN


def test_equivalence_is_corrected_and_its_margin_is_the_grids():
    gains = 0.3 + 0.25 * NOISE
    report = synthetic.report([*NONE, *runs("ls", gains)], design=Design(margin=0.5))
    alone = row(report, "ls")
    assert alone["word"] in SHOWN  # what is shown is not also called equivalent
    near = synthetic.report([*NONE, *runs("ls", 0.05 + NOISE)], design=Design(margin=0.5))
    more = synthetic.report([*NONE, *runs("ls", 0.05 + NOISE)], design=Design(margin=0.5, declared=Family(0, 10)))
    assert row(near, "ls")["word"] == Word.EQUIVALENT
    assert row(more, "ls")["p_equivalent"] == pytest.approx(min(1, 10 * row(near, "ls")["p_equivalent"]))
    assert row(synthetic.report([*NONE, *runs("ls", 0.05 + NOISE)], design=Design(margin=0.1)), "ls")["word"] == Word.OPEN


def test_fewer_than_six_turns_are_not_tested():
    records = [*NONE, *runs("tfd", 1 + NOISE)]
    costs = [cost.model_copy(update={"step": Timing(turns_ms=cost.step.turns_ms[:5])}) for cost in synthetic.costs_of(records)]
    report = synthetic.report(records, costs)
    assert row(report, "tfd")["cost_word"] == CostWord.NOT_TESTED
    [text] = [text for text in texts(report) if text.startswith("tfd gains")]
    assert "too few turns for an interval" in text


def test_flops_are_called_flops():
    report = synthetic.report([TEACHER, *NONE, *runs("kd", 2 + NOISE, "resnet110")], costs=[])
    [text] = [text for text in texts(report) if text.startswith("kd, with this one teacher, gains")]
    assert "times its FLOPs (matrix products and convolutions alone)" in text
    assert row(report, "kd")["cost_word"] == CostWord.COUNTED


def test_a_copy_of_itself_is_on_the_bill():
    """kd: 19.2 s beyond none for 2 points, a teacher of 120 s. tfkd_self: 19.2 s and a copy of 24 s for 2 points: from 6 on."""
    copy = synthetic.record(synthetic.cell("none", 1000), 60)
    records = [TEACHER, copy, *NONE, *runs("kd", 2 + NOISE, "resnet110"), *runs("tfkd_self", 2 - NOISE, "self", needs="self")]
    [pair] = synthetic.report(records).pairs
    found = frame_of(pair).iloc[0]
    assert (found["label"], found["rival"], found["students"]) == ("kd", "tfkd_self", 6)
    assert found["low"] <= 6 <= found["high"]
    assert row(synthetic.report(records), "tfkd_self")["with_teacher_ratio"] == pytest.approx((43.2 + 24) / 24)


def test_break_even_is_by_what_a_point_costs_beyond_the_plain_student():
    """By averages kd would pay from 1 student on: 43.2 / 2 < 24.72 / .5. Beyond none: 19.2 / 2 against .72 / .5, so never."""
    [pair] = synthetic.report([TEACHER, *NONE, *runs("kd", 2 + NOISE, "resnet110"), *runs("tfd", 0.5 + NOISE / 2)]).pairs
    found = frame_of(pair).iloc[0]
    assert found["students"] == math.inf
    assert found["determined"]


def test_a_shared_teacher_is_shared_by_a_number_that_no_grid_changes():
    few = [TEACHER, *NONE[:2], *runs("kd", [2, 2.1], "resnet110")]
    many = [*few, *runs("at", [1, 1.1], "resnet110"), *runs("fitnets", [1, 1.1], "resnet110")]
    assert row(synthetic.report(few), "kd")["shared_teacher_s"] == row(synthetic.report(many), "kd")["shared_teacher_s"]


def test_a_search_is_on_the_bill_with_all_its_values():
    records, searches = [*NONE], {}
    for weight in (0.1, 0.2, 0.3):
        some = runs("tfd", 1 + NOISE, method={"type": "tfd", "weight": weight})
        searches |= dict.fromkeys((record.id for record in some), 0)
        records += some
    report = synthetic.report(records, design=Design(searches=searches))
    found = row(report, "tfd(weight=0.1)")
    assert found["tuned"] == "here, 3 values"
    assert found["with_search_s"] == pytest.approx(24.72 + 2 * 5 * 24.72)  # two other values, five trainings each


# Seeds, teachers, looks, families


def failed(record, reason="failed: DivergedError"):
    return Missing(record.id, record.cell.label, reason, record.cell.cost_key, True)


def test_failed_seeds_stand_in_the_sentence_and_cap_the_word():
    some = runs("ls", 2 + NOISE)
    report = synthetic.report([*NONE, *some[:4]], design=Design(missing=(failed(some[4]),)))
    assert row(report, "ls")["word"] == Word.SUGGESTED
    assert any("ls (+2.00, 1 of 5 trainings failed)" in text for text in texts(report))


def test_devices_and_paths_are_never_pooled_and_are_named():
    def on(device, records, path=None):
        machine = synthetic.MACHINE.model_copy(update={"device": device})
        return [record.model_copy(update={"machine": machine, "path": path}) for record in records]

    none, ls = runs("none", [0.0] * 5), runs("ls", NOISE + 1)
    mixed = synthetic.report([*none[:3], *on("GPU", none[3:]), *ls[:3], *on("GPU", ls[3:])])
    assert row(mixed, "ls")[["n_paired", "apart", "crossed"]].tolist() == [3, 2, False]
    assert row(mixed, "ls")["gain"] == pytest.approx((NOISE[:3] + 1).mean())
    assert any("leaves out up to 2 seeds" in text for text in overall.caveats(mixed.summary, mixed.design, 0, ()))

    elsewhere = synthetic.report([*on("GPU", none, "graph"), *on("GPU", ls, "eager")])
    assert row(elsewhere, "ls")[["n_paired", "apart", "crossed"]].tolist() == [5, 0, True]
    [text] = [text for text in overall.caveats(elsewhere.summary, elsewhere.design, 0, ()) if "across devices" in text]
    assert text.endswith("no seed ran alike on both sides: ls.")
    usual = synthetic.report([*none, *ls])
    assert not any("devices" in text for text in overall.caveats(usual.summary, usual.design, 0, ()))


def test_what_is_not_finished_gets_no_word():
    some = runs("ls", 2 + NOISE)
    late = failed(some[4])._replace(failed=False)
    report = synthetic.report([*NONE, *some[:4]], design=Design(missing=(late,)))
    assert row(report, "ls")["word"] == Word.UNFINISHED
    old = late._replace(group="")  # as in the manifest of a former version
    assert row(synthetic.report([*NONE, *some[:4]], design=Design(missing=(old,))), "ls")["word"] == Word.UNFINISHED


def test_the_condition_of_one_teacher_stands_in_the_sentence_itself():
    report = synthetic.report([TEACHER, *NONE, *runs("kd", 2 + NOISE, "resnet110"), *runs("tfd", -1 - NOISE)])
    found = texts(report)
    assert any(text.startswith("kd, with this one teacher, gains 2.00 points over none") for text in found)
    assert any(text.startswith("tfd loses 1.00 points against none") for text in found)
    assert any("worse than kd with its one teacher" in text and "times with the teacher's" in text for text in found)


def test_several_teachers_are_what_the_test_is_over():
    """Three teachers with two students each: the error is that of three means, not of six runs."""
    records = [synthetic.record(synthetic.cell("none", seed), 60.0) for seed in range(6)]
    for seed in range(6):
        teacher = synthetic.cell("none", seed % 3, "resnet110")
        cell = synthetic.cell("kd", seed, teacher="resnet110")
        cell = cell.model_copy(update={"teacher": Teacher(cell=teacher.id, model={"type": "resnet110"})})
        records += [synthetic.record(teacher, 74.0)] * (seed < 3)
        records.append(synthetic.record(cell, 61.0 + seed % 3 + 0.01 * seed))
    report = synthetic.report(records)
    means = np.array([1.015, 2.025, 3.035])
    half = 4.303 * means.std(ddof=1) / math.sqrt(3)  # t(.975, 2)
    assert row(report, "kd")["high"] == pytest.approx(means.mean() + half, abs=1e-3)
    assert not row(report, "kd")["one_teacher"]


def test_seeds_that_were_added_after_a_look_are_corrected_for():
    ls = runs("ls", 0.5 + NOISE)
    history = []
    for records in (NONE, ls):
        for record in records:
            day = 1 if record.cell.seed < 3 else 2
            changes = {
                "started": f"2026-01-0{day}T00:00:00+00:00",
                "finished": f"2026-01-0{day}T01:00:00+00:00",
                "commit": f"{day}",
            }
            history.append(record.model_copy(update=changes))
    looked = row(synthetic.report([*NONE, *ls], design=Design(requests=rebuilt(history))), "ls")
    at_once = row(synthetic.report([*NONE, *ls]), "ls")
    assert (looked["looks"], at_once["looks"]) == (2, 1)
    assert looked["p_adjusted"] == pytest.approx(6 * at_once["p_adjusted"])


def test_primary_comparisons_are_a_family_of_their_own():
    others = [runs(name, 1 + NOISE) for name in ("ls", "tffd", "byot")]
    tfd = runs("tfd", 1 - NOISE)
    design = Design(primary=frozenset(record.id for record in tfd))
    report = synthetic.report([*NONE, *tfd, *(record for some in others for record in some)], design=design)
    assert (row(report, "tfd")["comparisons"], row(report, "ls")["comparisons"]) == (1, 3)
    assert (row(report, "tfd")["word"], row(report, "ls")["word"]) == (Word.SHOWN, Word.SHOWN_EXPLORATORY)
    found = texts(report)
    assert found[0].startswith("tfd gains")
    assert sum("exploratory" in text for text in found) == 3


def test_no_open_comparison_has_an_interval_without_zero():
    records = synthetic.draw(synthetic.TRUTH | dict.fromkeys(("at", "sp", "rkd", "pkt"), 0.6), 4, RNG(5))
    table = synthetic.report(records).summary
    for suffix in ("", "_kd"):
        part = table[table["word" + suffix].notna()]
        outside = (part["low" + suffix] > 0) | (part["high" + suffix] < 0)
        assert (outside == part["word" + suffix].isin(SHOWN)).all()
    assert table["detectable"].nunique() == 1


def test_what_collapsed_does_not_decide_what_the_design_could_have_seen():
    calm = synthetic.report([*NONE, *runs("ls", 0.1 * NOISE), *runs("tfd", 0.1 * NOISE[::-1])])
    collapsed = runs("tffd", [-30.0, -20.0, -25.0, -28.0, -22.0])
    report = synthetic.report([*NONE, *runs("ls", 0.1 * NOISE), *runs("tfd", 0.1 * NOISE[::-1]), *collapsed])
    assert row(report, "ls")["detectable"] < 2 * row(calm, "ls")["detectable"] < 1


# Over pairs


def test_a_gain_that_no_pair_shows_alone_is_shown_over_the_pairs():
    pairs = [
        (student, "resnet110")
        for student in ("resnet8", "resnet14", "resnet20", "resnet26", "resnet32", "resnet38", "resnet44")
    ]
    truth = {"none": 0, "at": 0.8} | dict.fromkeys(("kd", "sp", "rkd", "pkt", "cc", "vid"), 0.0)
    report = synthetic.report(synthetic.draw(truth, 3, RNG(3), pairs=pairs))
    at = report.over.set_index("label").loc["at"]
    assert at["word"] in SHOWN
    assert at["low"] <= 0.8 <= at["high"]
    assert at["like_word"] == Word.NOT_TESTED  # one teacher joins all pairs
    assert (report.summary.set_index("label").loc["at", "word"].isin(SHOWN)).sum() <= 2
    [text] = [sentence.text for sentence in overall.of_methods(report.over) if sentence.text.startswith("at gains")]
    assert "on average over these 7 pairs, with these teachers," in text


# Figures and files


def test_a_teacher_of_unknown_cost_leaves_its_method_in_the_figure():
    supplied = Teacher(model={"type": "resnet110"}, weights_sha256="a" * 64)
    kd = [record.model_copy(update={"id": cell.id, "cell": cell}) for record in runs("kd", 2 + NOISE, "resnet110")
          for cell in [record.cell.model_copy(update={"teacher": supplied})]]  # fmt: skip
    [pair] = synthetic.report([*NONE, *kd, *runs("tfd", 1 + NOISE)]).pairs
    figure = accuracy_cost(pair)
    assert "kd 64.00 % at 43.2, its teacher's cost unknown" in figure.alt
    assert figure.alt.endswith("On the Pareto frontier of the means: none, tfd.")
    assert "(teacher's cost unknown)" in figure.svg


def test_no_published_row_is_dropped():
    records = []
    for student in ("resnet20", "resnet32", "resnet8x4", "wrn_16_2", "wrn_40_1", "vgg8"):
        teacher = {"resnet8x4": "resnet32x4", "vgg8": "vgg13"}.get(student, "wrn_40_2" if "wrn" in student else "resnet110")
        truth = dict.fromkeys(("none", "kd", "fitnets", "at", "sp", "vid", "rkd", "pkt", "ab"), 0.0)
        records += synthetic.draw(truth, 1, RNG(0), pairs=[(student, teacher)])
    figure = published(synthetic.report(records))
    assert figure.alt.count(" published ") > 40


def test_abbreviated_names_stay_different():
    names = [
        "tfd(ramp_epochs=0, direction=bottom_up)",
        "tfd(ramp_epochs=0, direction=both)",
        "tfd(ramp_epochs=0, direction=bo)",
    ]
    assert len(set(abbreviated(names))) == 3
    same_ends = [f"tfd(ramp_epochs=0, weight={value}, direction=bottom_up)" for value in (0.1, 0.2)]
    assert len(set(abbreviated(same_ends))) == 2
    assert abbreviated(["kd"]) == ["kd"]


def test_nothing_is_cut_off_at_the_edges_of_a_figure():
    records = [*NONE]
    for index, weight in enumerate((0.1, 0.02, 0.003, 0.0004, 0.5)):
        method = {"type": "tfd", "weight": weight, "reduction": "sum", "direction": "bottom_up"}
        records += runs("tfd", index + NOISE, method=method)
    curves = {record.id: Curve(np.linspace(10, record.accuracies.last.top1, 240), np.full(240, np.nan)) for record in records}
    [pair] = synthetic.report(records, curves=curves).pairs
    for make in (learning_curves, forest, accuracy_cost):
        buffer = io.BytesIO()
        make(pair).canvas.savefig(buffer, format="png")
        buffer.seek(0)
        drawn = imread(buffer)[..., :3]
        paper = drawn[0, 0]
        for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
            assert np.abs(edge - paper).max() < 0.02, make


def test_no_accuracy_at_equal_cost_is_read_off_a_schedule_that_was_cut():
    names = [entry.make.__name__ for entry in tables_of_pair]
    assert "time_to_accuracy" in names
    assert "equal_cost" not in names


def test_load_warns_of_what_it_leaves_out_and_refuses_a_place_that_is_not_there(tmp_path):
    folder = synthetic.filled(tmp_path, "demo", NONE)
    synthetic.edit(folder, NONE[0], {"steps": 1})
    with pytest.warns(UserWarning, match="edited by hand"):
        assert len(reports.load(tmp_path)) == 4
    with pytest.raises(UserError, match="unknown hardware 'no such machine'"), pytest.warns(UserWarning, match="edited"):
        reports.load(tmp_path, where="no such machine")


def test_both_precisions_have_a_sentence(tmp_path):
    bf16 = [
        synthetic.record(cell, record.accuracies.last.top1 + noise, id=cell.id)
        for record, noise in zip(NONE, NOISE / 10, strict=True)
        for cell in [record.cell.model_copy(update={"precision": "bf16"})]
    ]
    html = page.write(synthetic.filled(tmp_path, "demo", NONE + bf16)).page.read_text()
    assert "none on resnet20, bf16 against fp32: equivalent" in html


def test_two_folders_are_compared_once_for_all_teachers(tmp_path):
    pairs = [("resnet20", "resnet110"), ("resnet20", "resnet56")]
    records = synthetic.draw({"none": 0, "kd": 1}, 3, RNG(0), pairs=pairs)
    ours = synthetic.report(records)
    table = compared(ours.__class__(**{**ours.__dict__, "other": type("Other", (), {"name": "b", "frame": ours.frame})()}))
    assert sorted(table.frame["label"]) == ["kd", "kd", "none"]


@pytest.mark.parametrize(
    ("p", "shown"),
    [
        (0.0499, ".0499"),
        (0.0503, ".0503"),
        (0.05, ".050"),
        (0.05 - 1e-12, "< .05"),
        (0.062, ".062"),
        (0.0001, "< .001"),
        (1.0, "1"),
    ],
)
def test_p_shows_on_which_side_of_five_percent_it_lies(p, shown):
    assert p_value(p) == shown


def test_profiles_count_the_pairs_that_gain_so_much():
    pairs = [(f"resnet{depth}", "resnet110") for depth in (8, 14, 20)]
    [figure] = profiles(synthetic.report(synthetic.draw({"none": 0, "kd": 5, "at": -5}, 3, RNG(0), pairs=pairs)))
    assert "kd gains on 100 % of 3 pairs; at gains on 0 % of 3 pairs" in figure.alt
    two = synthetic.report(synthetic.draw({"none": 0, "kd": 5}, 3, RNG(0), pairs=pairs[:2]))
    assert profiles(two) == []
