"""What a grid states of its comparisons, and the history of what was asked of it."""

from __future__ import annotations

import json

import pytest
import synthetic
from small import GRID, write_grid

import reports
from bench import run
from bench.errors import UserError
from bench.plan import grid_file
from bench.plan.expand import expand
from bench.records.comparisons import Baseline, Family, comparisons, count
from bench.records.folders import ResultsFolder
from bench.records.manifest import mistake
from bench.records.options import Options
from bench.records.requests import merged, rebuilt
from run_bench import main


def expanded(**changes):
    return expand("small", GRID | {"seeds": [0, 1]} | changes, device="cpu")


def test_primary_is_the_entry_as_written_and_changes_no_id():
    methods = ["none", "kd", {"tfd": {"ramp_epochs": 0}}, {"tfd": {"ramp_epochs": 1}}]
    plain = expanded(methods=methods)
    grid = expanded(methods=methods, primary=[{"tfd": {"ramp_epochs": 0}}], margin=0.3)
    assert [cell.id for cell in grid.cells] == [cell.id for cell in plain.cells]
    primary = [each for each in grid.comparisons if each.primary]
    assert [(each.method[0].method["ramp_epochs"], each.against) for each in primary] == [(0, Baseline.NONE), (0, Baseline.KD)]
    assert count(grid.comparisons) == Family(2, 3)  # tfd and kd against none, tfd against kd
    marked = [cell["label"] for cell in grid.manifest()["cells"] if cell.get("primary")]
    assert len(marked) == 2
    assert grid.manifest()["comparisons"] == {"primary": 2, "exploratory": 3}
    assert count(plain.comparisons) == Family(0, 5)


def test_a_search_is_an_entry_with_several_values():
    grid = expanded(methods=["none", {"tfd": {"weight": [0.1, 0.2]}}], search=[{"tfd": {"weight": [0.1, 0.2]}}])
    assert [cell.get("search") for cell in grid.manifest()["cells"]] == [None, None, 0, 0, 0, 0]


def test_an_entry_that_names_nothing_is_refused():
    with pytest.raises(UserError, match=r"small, primary\[0\]: .*tffd.* names no method of this grid"):
        expanded(primary=["tffd"])
    with pytest.raises(UserError, match="margin"):
        expanded(margin=0)


def test_set_takes_methods_away_from_primary_and_says_so(tmp_path, capsys):
    file = write_grid(tmp_path, "mine", seeds=[0, 1], primary=["tfd", "kd"], search=[{"tfd": {"weight": [0.1]}}])
    options = Options(device="cpu")
    with pytest.raises(UserError, match=r"search\[0\].*names no method"):  # a slip in the file
        run.plan(file, tmp_path, [], options)
    some, _ = run.plan(file, tmp_path, ["methods=[none, kd]"], options)
    assert some.declared.notes == (
        'primary: "tfd" is left out, as --set took it away; "kd" stays',
        'search: {"tfd": {"weight": [0.1]}} is left out, as --set took it away; without it nothing counts as a search',
    )
    assert [each.against for each in some.comparisons if each.primary] == [Baseline.NONE]
    none, _ = run.plan(file, tmp_path, ["methods=[none, ls]"], options)
    assert count(none.comparisons) == Family(0, 1)
    for strict in (["methods=[none, kd]", "primary=[tfd]", "search=[]"], ["recipe.epochs=2", "search=[]", "primary=[ls]"]):
        with pytest.raises(UserError, match=r"primary\[0\].*names no method"):
            run.plan(file, tmp_path, strict, options)
    assert (
        main(["plan", "paper_table1", "--set", "methods=[none, at]", "--set", "data=digits", "--results", str(tmp_path)]) == 0
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert 'primary: "tfd" is left out, as --set took it away; without it all comparisons are one family' in printed


def test_runs_without_a_teacher_are_compared_once_for_all_teachers():
    pairs = [{"student": "resnet8", "teacher": teacher} for teacher in ("resnet14", "resnet20", "resnet8x4")]
    grid = expanded(pairs=pairs)
    against = [each.against for each in grid.comparisons]
    assert against.count(Baseline.NONE) == 1 + 3  # tfd once, kd with each teacher
    assert against.count(Baseline.KD) == 3  # tfd against three kds


@pytest.mark.parametrize("name", ["paper_table1", "paper_table2", "paper_table4", "paper_table5", "cifar100_30"])
def test_the_papers_grids_declare_tfd_against_none_and_kd(name, repository):
    path = repository / "results/reference/cifar100_30.yaml" if name == "cifar100_30" else name
    _, raw = grid_file.read(str(path), ["data=digits"])
    grid = expand(name, raw, device="cpu")
    primary = [each for each in grid.comparisons if each.primary]
    assert {each.method[0].method["type"] for each in primary} == {"tfd"}
    kd = any(cell.method["type"] == "kd" for cell in grid.cells)
    assert {each.against for each in primary} == ({Baseline.NONE, Baseline.KD} if kd else {Baseline.NONE})


def test_requests_are_kept_and_repeated_ones_are_not(tmp_path):
    folder = ResultsFolder(tmp_path).grid("small")
    first, more = expanded().manifest(), expanded(seeds=[0, 1, 2]).manifest()
    for manifest in (first, first, more):
        folder.write_manifest(manifest, "abc")
    asked, again = folder.manifest()["requests"]
    assert [each["commit"] for each in (asked, again)] == ["abc", "abc"]
    assert set(map(tuple, again["seeds"].values())) == {(0, 1, 2), (0,)}  # one teacher
    assert again["done"] == {}  # nothing was trained: nobody has seen anything
    folder.add_to_manifest(more)
    assert len(folder.manifest()["requests"]) == 2
    later = [dict(again, time="9")]
    assert merged([asked], [again, asked, *later]) == [asked, again, *later]


def test_a_history_is_rebuilt_from_commits_and_marked():
    early = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T01:00:00+00:00", "commit": "a"}
    late = {"started": "2026-01-02T00:00:00+00:00", "finished": "2026-01-02T01:00:00+00:00", "commit": "b"}
    records = [synthetic.record(synthetic.cell("none", seed), 60, **(late if seed > 2 else early)) for seed in range(5)]
    first, second = rebuilt(records)
    [group] = first["seeds"]
    assert (first["seeds"][group], second["seeds"][group]) == ([0, 1, 2], [0, 1, 2, 3, 4])
    assert (first["done"], second["done"]) == ({}, {group: [0, 1, 2]})
    assert first["rebuilt"]
    assert second["rebuilt"]
    json.dumps([first, second])


def test_comparisons_take_the_only_kd_or_the_one_at_its_defaults():
    kd = synthetic.cell("kd", 0, teacher="resnet110").model_copy(update={"method": {"type": "kd", "temperature": 2.0}})
    other = kd.model_copy(update={"method": {"type": "kd", "temperature": 8.0}})
    free = [synthetic.cell("none", 0), synthetic.cell("tfd", 0)]
    assert [each.against for each in comparisons([*free, kd])].count(Baseline.KD) == 1
    assert [each.against for each in comparisons([*free, kd, other])].count(Baseline.KD) == 0


# What was ever asked of a name


def trained(folder, cells, seeds):
    """Records of the cells of these seeds, as a run would leave them."""
    for cell in cells:
        if cell.seed in seeds:
            place = folder.cell(cell.id)
            place.write_curves(synthetic.curves(cell.recipe.epochs, 60.0))
            place.write_record(synthetic.record(cell, 60.0, synthetic.curves(cell.recipe.epochs, 60.0)))


def test_set_hides_nothing(tmp_path, capsys):
    """`run mine`, then `run mine --set "seeds=[5]"`: what is finished stays in `status` and in the report."""
    file, root = write_grid(tmp_path, "mine", seeds=[0, 1, 2, 3]), ["--results", str(tmp_path / "results")]
    options = Options(device="cpu")
    for overrides, seeds in (([], {0, 1, 2, 3}), (["seeds=[5]"], {5})):
        grid, folder = run.plan(file, tmp_path / "results", overrides, options)
        run.begin(grid, folder)
        trained(folder, grid.cells, seeds)
    assert main(["status", "mine", *root]) == 0
    printed = capsys.readouterr().out
    assert "17 of 17 done\n" in printed  # three methods on five seeds, and a teacher of each request
    assert main(["report", "mine", *root]) == 0
    rows = reports.load(tmp_path / "results", "mine")
    assert sorted(rows[rows["label"] == "tfd"]["seed"]) == [0, 1, 2, 3, 5]
    first, second = folder.manifest()["requests"]
    assert {tuple(seeds) for seeds in second["seeds"].values()} >= {(0, 1, 2, 3, 5)}
    assert first["seeds"] == second["done"]


def test_what_is_unfinished_of_earlier_requests_is_not_missing(tmp_path, capsys):
    file, root = write_grid(tmp_path, "mine", seeds=[0, 1]), ["--results", str(tmp_path / "results")]
    for overrides, seeds in (([], {0}), (["seeds=[0]"], set())):
        grid, folder = run.plan(file, tmp_path / "results", overrides, Options(device="cpu"))
        run.begin(grid, folder)
        trained(folder, grid.cells, seeds)
    main(["status", "mine", *root])
    assert "4 of 4 done\n" in capsys.readouterr().out
    run.begin(*run.plan(file, tmp_path / "results", [], Options(device="cpu")))
    main(["status", "mine", *root])
    assert "4 of 7 done, 3 missing\n" in capsys.readouterr().out


def test_another_grid_file_of_the_same_name_is_refused(tmp_path, capsys):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    one, other = write_grid(tmp_path / "a", "mine"), write_grid(tmp_path / "b", "mine", methods=["none"])
    same = write_grid(tmp_path / "c", "mine")
    results, options = tmp_path / "results", Options(device="cpu")
    run.begin(*run.plan(one, results, options=options))
    before = (results / "mine/manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"of another grid file of this name \(\.\./a/mine\.yaml.*rename .*b/mine\.yaml"):
        run.begin(*run.plan(other, results, options=options))
    assert (results / "mine/manifest.json").read_bytes() == before
    run.begin(*run.plan(same, results, options=options))
    write_grid(tmp_path / "c", "mine", methods=["none", "kd"])  # edited: the same file, another request
    grid, folder = run.plan(same, results, options=options)
    run.begin(grid, folder)
    assert len(folder.manifest()["cells"]) == 4
    (tmp_path / "c/mine.yaml").unlink()  # moved
    run.begin(*run.plan(other, results, options=options))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("grid", "x"), ("grid", {"margin": "wide"}), ("requests", [{"time": "x"}]), ("looks", [1]), ("rule", {"first": 9})),
        *(("comparisons", {"primary": 1}), ("plugins", {"x": {}}), ("methods", {"x": 1}), ("file", 1)),
    ],
)
def test_a_manifest_with_a_field_of_a_wrong_kind_is_named(field, value):
    manifest = {"cells": [{"id": "a", "label": "b"}], "skipped": []}
    assert mistake(manifest) is None
    assert field in mistake(manifest | {field: value})
