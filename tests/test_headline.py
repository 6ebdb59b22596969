"""What our pages show of finished grids, from records whose numbers are worked out here."""

from __future__ import annotations

import sys

import pandas as pd
import pytest
import synthetic

from bench.records.cell import Teacher
from bench.records.folders import GridFolder
from reports import headline, published, readme, tfd, verdicts

NONE = [60.0, 61.0, 62.0, 63.0, 64.0]
GAINS = {
    "none": [0.0] * 5,
    "kd": [2.0, 2.1, 1.9, 2.0, 2.0],
    "tfd": [0.5, -0.5, 0.1, -0.1, 0.0],
    "ls": [-3.0, -3.1, -2.9, -3, -3],
}


def folder(tmp_path, gains=GAINS, **changes) -> GridFolder:
    teacher = synthetic.teacher_cell()
    records = [synthetic.record(teacher, 74.3, synthetic.curves(240, 74.3))]
    for method, by_seed in gains.items():
        for seed, gain in enumerate(by_seed):
            cell = synthetic.cell(method, seed, teacher="resnet110" if method == "kd" else None)
            if method == "kd":
                cell = cell.model_copy(update={"teacher": Teacher(cell=teacher.id, model={"type": "resnet110"})})
            top1 = NONE[seed] + gain
            records.append(synthetic.record(cell, top1, synthetic.curves(240, top1), **changes))
    return synthetic.filled(tmp_path / "results" / "reference", "demo", records)


def rows(markdown: str) -> dict[str, list[str]]:
    """First cell of every line of a table to the others."""
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
    return {name: values for name, *values in lines}


def known() -> pd.DataFrame:
    table = published.read()
    return table[(table["source"] == "Li et al. 2022 (TFD)") & (table["table"] == "2") & (table["student"] == "resnet20")]


def test_the_answer_holds_means_gains_costs_and_the_published_numbers(tmp_path):
    made = headline.answer(folder(tmp_path), known())
    found = rows(made)
    assert found["none"][:3] == ["5", "62.00 ± 1.96", "–"]  # t(.975, 4) sqrt(2.5 / 5) = 2.776 x .7071
    seeds, top1, gain, p, claim, cost, with_teacher, theirs, rule, their_gain = found["kd"]
    assert (seeds, top1) == ("5", "64.00 ± 1.95")  # 2.776 x sqrt((4 + .81 + .01 + 1 + 4) / 4 / 5)
    assert gain == r"+2.00 \[+1.85, +2.15\]"  # of five comparisons: t(.995, 4) sqrt(.005 / 5) = 4.604 x .0316 = .146
    assert p == "&lt; .001"
    assert claim == "gain shown"
    # steps of 18 and 10 ms; the teacher's 2,400 steps of 50 ms on top of 2,400 of the student's
    assert (cost, with_teacher) == (r"1.80× \[1.80×, 1.80×\]", "6.80×")
    assert (theirs, rule, their_gain) == ("70.67", "last epoch, mean", "+1.61")
    assert found["tfd"][7:] == ["70.56", "best epoch, best of 3 runs", "–"]  # its gain would set one rule against another
    assert found["ls"][7:] == ["–", "–", "–"]
    assert "resnet110 → resnet20, cifar100, 50,000 images, 240 epochs, 5 seeds: kd (+2.00) is shown to gain over none" in made
    assert "with this one teacher" in made
    assert (
        "ls (−3.00) is shown to lose to none; tfd (−2.00) and ls (−5.00) are shown to lose to kd, which has a teacher;" in made
    )
    assert "; open against none: tfd (+0.00) (with 80 % probability this design would show a true gain of" in made
    assert "kd costs 1.80 times none's training time, 6.80 times with the teacher's" in made
    assert "](demo/report/figures/01-resnet110-resnet20-accuracy-cost.png)" in made


def test_one_seed_is_not_called_a_null_result(tmp_path):
    made = headline.answer(folder(tmp_path, {name: gains[:1] for name, gains in GAINS.items()}), known())
    assert "no difference" not in made.partition("\n\n|")[0]
    assert "not tested, for want of seeds" in made


def test_without_the_plain_student_nothing_is_summed_up_and_without_costs_flops_are(tmp_path):
    with pytest.raises(ValueError, match="plain student"):
        verdicts.in_short(pd.DataFrame({"label": ["kd"], "baseline": ["kd"]}))
    untimed = folder(tmp_path)
    for path in untimed.results.root.glob("demo/cost/*"):
        path.unlink()
    assert "| FLOPs ÷ none |" in headline.answer(untimed, known())
    assert "| FLOPs ÷ none, with the teacher's |" in headline.first(untimed)


def test_the_front_page_has_five_columns(tmp_path):
    made = headline.first(folder(tmp_path))
    assert {len(values) for values in rows(made).values()} == {4}
    assert rows(made)["kd"] == ["64.00 ± 1.95", r"+2.00 \[+1.85, +2.15\]", "gain shown", "6.80×"]


def test_a_claim_stands_with_its_rules():
    printed = published.read()
    printed = printed[
        printed["source"].eq("Li et al. 2022 (TFD)") & printed["table"].eq("1") & printed["student"].eq("resnet20")
    ]
    found = rows(tfd.claimed(printed))
    assert found["resnet20"] == ["69.06", "last epoch, mean", "70.56", "best epoch, best of 3 runs", "+1.50", "no"]


def test_what_it_took_is_the_time_in_which_something_ran(tmp_path):
    at = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:10:00+00:00"}  # all at once, ten minutes
    again = synthetic.filled(tmp_path / "results/reference", "again", folder(tmp_path, **at).records()[0])
    shown = headline.repeating(again.results, ["demo", "again"], {})
    assert rows(shown)["run demo"][:2] == ["21", "10.0 min"]
    assert shown.endswith(f"\n\nAll of them took 20.0 min on {synthetic.MACHINE.hardware}.\n")


def test_a_picture_is_taken_again_only_of_another_page(tmp_path, monkeypatch):
    browser, page, picture = tmp_path / "chromium", tmp_path / "page.html", tmp_path / "page.png"
    taking = (
        "import os, sys; from PIL import Image\n"
        "to = next(each.partition('=')[2] for each in sys.argv if each.startswith('--screenshot='))\n"
        "Image.frombytes('RGB', (4, 4), os.urandom(48)).save(to)"  # a browser draws some letters differently each time
    )
    browser.write_text(f"#!{sys.executable}\n{taking}\n")
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    taken = []
    for text in ("one<span>written 26 November</span>", "one<span>written 27 November</span>", "two"):
        page.write_text(text)
        assert readme.photographed(page, picture)
        taken.append(picture.read_bytes())
    assert taken[0] == taken[1] != taken[2]
    browser.unlink()
    assert readme.photographed(page, picture)
    page.write_text("three")
    assert not readme.photographed(page, picture)


def test_the_sentence_covers_no_ablations(tmp_path):
    """Of two tfd the one whose reduction is not the default stands in the table alone."""
    place = folder(tmp_path)
    added = [synthetic.record(cell, 20.0, synthetic.curves(240, 20.0)) for cell in _summed(range(5))]
    records, _ = place.records()
    again = synthetic.filled(tmp_path / "again", "demo", [*records, *added])
    sentence = next(line for line in headline.answer(again, known()).splitlines() if line.startswith("**"))
    assert "tfd" in sentence
    assert "reduction" not in sentence
    assert any("reduction=sum" in name for name in rows(headline.answer(again, known())))


def _summed(seeds):
    for seed in seeds:
        cell = synthetic.cell("tfd", seed)
        yield cell.model_copy(update={"method": {**cell.method, "reduction": "sum"}})
