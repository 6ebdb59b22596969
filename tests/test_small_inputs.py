"""Small odd inputs: each is refused in one line that names place, value and what is allowed, or is taken for what it means."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from small import write_grid

import run_bench
from bench import run
from bench.data import load, look
from bench.data.files import Crops, Files
from bench.data.sets import stratified
from bench.engine.trial import TrialError, Trials
from bench.errors import UserError, unknown
from bench.plan import grid_file
from bench.plan.specs import as_json, complete, value_of
from bench.records.options import Options
from methods import METHODS
from methods.base import Card, Method

SEVERAL = {"kd": {"temperature": [2, 3]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": [{"kd": {"type": "tfd"}}]}, r"methods\[0\]\.type: the method is kd already; leave the key out"),
        ({"methods": [{"tfd+kd": {"kd": 5}}]}, r"methods\[0\]: write {kd: {argument: value}}, not {'kd': 5}"),
        ({"methods": ["kd+"]}, r"methods\[0\]: 'kd\+' has a part without a name"),
        ({"methods": ["KD"]}, "unknown method 'KD'; did you mean 'kd'"),
        ({"methods": [{"kd": {"temperature": {"type": "kd"}}}]}, r"methods\[0\]\.temperature: a number, not {"),
        ({"methods": [{"logit_std": {"method": {}}}]}, r"a method is written as {type: name, argument: value}, not {}"),
        ({"methods": [{"ft": {"prepare_lr": True}}]}, r"methods\[0\]\.prepare_lr: a number, not True \(YAML"),
        ({"methods": [{"one": {"branches": 10**5}}]}, r"methods\[0\]\.branches: in \[2, 64\], not 100000"),
        ({"methods": [{"dml": {"peers": 10**5}}]}, r"methods\[0\]\.peers: in \[1, 64\], not 100000"),
        ({"methods": [{"ls": {"epsilon": 0.1}, "label": "{epsilon}" * 20 + "x" * 190}]}, "label: a line of at most 40 char"),
        ({"methods": [False]}, r"methods\.0: a name or a mapping, not False \(YAML reads yes, no"),
        ({"pairs": [{"student": "resnet8"}, {"student": {"type": "resnet8"}}]}, r"pairs\[1\]: resnet8 stands twice; remove"),
        ({"pairs": [{"student": {}}]}, r"pairs\[0\]\.student: the key `type` is missing, the name of a model; known: mob"),
        ({"primary": ["none"]}, "tiny, primary: no comparison is about these methods"),
        ({"margin": True}, r"margin: a number, not True \(YAML"),
        ({"choose": {}, "methods": ["none", "kd"]}, "tiny, choose: no method of this grid has several values"),
        ({"choose": {"seeds": [5, 5]}, "methods": [SEVERAL]}, r"tiny, choose\.seeds: 5 stands twice"),
        ({"also": [{"seeds": {"first": 2, "most": 3}}]}, r"also\[0\], seeds: sequential seeds are one rule for all"),
        ({"also": [{"margin": 5}]}, r"also\[0\], margin: there is one for all of a grid"),
        ({"recipe": {"ema": 1}}, r"recipe\.ema: below 1, not 1: the averaged copy"),
        (
            {"recipe": {"crop": "resized", "image_size": 16, "crop_pct": 1e-6}},
            "recipe, crop_pct: 1e-06 asks for test images of 16,000,000 pixels; at most 8,192",
        ),
        ({"recipe": {"dropout": 1}}, r"recipe\.dropout: below 1, not 1: nothing of the embedding"),
        ({"recipe": "~nobody-of-that-name/x.yaml"}, "recipe: there is no user ~nobody-of-that-name"),
        ({"data": {"type": "digits", "digest": "0" * 64}}, r"data\.digest: that of these data is none, .* not '000"),
    ],
)
def test_a_slip_in_a_grid_is_one_line(tiny, changes, message):
    with pytest.raises(UserError, match=message):
        tiny(**{"methods": ["none", "kd"]} | changes)


@pytest.mark.parametrize("tag", ["!!binary aGk=", "!!set {a}", "!!timestamp 2026-01-01", "!!pairs [a: 1]", "!own x"])
def test_a_value_that_json_cannot_hold_is_refused_where_it_stands(tag):
    with pytest.raises(UserError, match=r"--set about=!.*:1:1: not YAML: the tag '!\S+' stands for no text, number, true"):
        grid_file.read("quick", [f"about={tag}"])


def test_an_equals_sign_is_a_text():
    assert grid_file.read("quick", ["about=="])[1]["about"] == "="


def test_a_recipe_is_found_in_a_home(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("epochs: 7\nlr_for: {resnet: true}\n")
    with pytest.raises(UserError, match=r"mine\.yaml\.lr_for\.resnet: a number, not True"):
        tiny(recipe="~/mine.yaml")
    (tmp_path / "mine.yaml").write_text("epochs: 7\n")
    assert {cell.recipe.epochs for cell in tiny(recipe="~/mine.yaml").cells} == {7}


def test_a_list_of_thousands_is_cut_in_an_error():
    text = str(unknown("cell", "nope", [f"cell-{number}" for number in range(5000)]))
    assert len(text) < 200
    assert text.endswith("cell-1002, cell-1003, and 4992 more")


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}])
def test_a_default_that_cannot_be_written_down_is_named(value, monkeypatch):
    class Odd(Method):
        card = Card("Odd", "0", "none")

        def __init__(self, thing: object = value) -> None:
            super().__init__()

    monkeypatch.setitem(METHODS.module_dict, "odd", Odd)
    with pytest.raises(UserError, match=r"here: the default of thing of odd, .* cannot be written down; allowed: finite"):
        complete(METHODS, "method", {"type": "odd"}, "here")
    with pytest.raises(UserError, match="presets of odd"):
        as_json({"a": value}, "presets of odd")


def test_an_annotation_that_no_file_can_hold_is_named():
    with pytest.raises(UserError, match=r"here: a value in a grid file cannot be a <class 'methods.base.Method'>"):
        value_of(5, Method, "here")
    assert value_of({"type": "none"}, Method, "here") == {"type": "none"}


def test_an_annotation_that_names_nothing_is_named(monkeypatch):
    class Unread(Method):
        card = Card("Unread", "0", "none")

        def __init__(self, thing: Missing) -> None:  # type: ignore[name-defined] # noqa: F821
            super().__init__()

    monkeypatch.setitem(METHODS.module_dict, "unread", Unread)
    with pytest.raises(UserError, match=r"test_small_inputs\.py:\d+: the annotations of Unread .* 'Missing' is not defined"):
        complete(METHODS, "method", {"type": "unread"}, "here")


def test_a_cell_computes_its_id_once_and_a_changed_copy_its_own(tiny):
    cell = tiny(methods=["none"]).cells[0]
    known, key = cell.id, cell.cost_key
    assert cell.id is known
    other = cell.model_copy(update={"seed": cell.seed + 1, "protocol": 99})
    assert (other.id == known, other.cost_key == key) == (False, False)
    fresh = type(cell).model_validate(cell.model_dump(mode="json"))
    assert fresh == cell
    assert fresh.id == known
    assert cell.model_dump_json() == fresh.model_dump_json()
    assert copy.deepcopy(cell).id == pickle.loads(pickle.dumps(cell)).id == known


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("=1", "--set =1: a part of the key is empty"),
        ("recipe..epochs=1", r"--set recipe\.\.epochs=1: a part of the key is empty"),
        ("recipe.epochs.x=5", r"'recipe\.epochs' is no mapping; set all of it, as in --set recipe\.epochs=\.\.\."),
        ("recipe.epochs=" + "9" * 5000, "1:1: not YAML: a number of 5,000 characters; allowed: at most 1000"),
    ],
)
def test_an_override_that_cannot_be_names_its_key(override, message):
    with pytest.raises(UserError, match=message):
        grid_file.read("quick", ["recipe={name: crd, epochs: 3}", override])


def test_only_a_number_is_missing_a_point(tiny):
    with pytest.raises(UserError, match=r"seeds: a list, not '0,1'$"):
        tiny(seeds="0,1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cost", "quick", "--threads", "99999"], "--threads: 0 for all cores, or at most 1,024, not 99999"),
        (["run", "quick", "--threads", "99999"], "local, threads: a number of at most 1,024, not 99999"),
        (["run", "quick", "--together", "--apart"], "--together and --apart contradict each other"),
        (["export", ""], "unknown cell ''"),
        (["verify", "--all"], "there are no results in this folder"),
    ],
)
def test_options_that_would_do_harm_or_nothing_are_refused(words, message, tmp_path, capsys):
    assert run_bench.main([*words, "--results", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_text_names_no_cell(tiny):
    grid = tiny(methods=["none"])
    assert len(grid.cells) == 1
    with pytest.raises(UserError, match="--cell: unknown cell ''"):
        grid.with_teachers([""])


def test_verify_of_an_unknown_grid_names_those_that_are_known(tmp_path, capsys):
    (tmp_path / "without").mkdir()
    assert run_bench.main(["verify", "wihtout", "--results", str(tmp_path)]) == 2
    assert "unknown results 'wihtout'" in capsys.readouterr().err
    assert run_bench.main(["verify", "without", "--results", str(tmp_path)]) == 1


class Idle(Method):
    card = Card("Idle", "0", "none")

    def terms(self, student, batch):
        return {"idle": student.logits.detach().mean()}


class Late(Method):
    card = Card("Late", "0", "none")

    def terms(self, student, batch):
        return {"late": student.logits.mean() if batch.progress > 0.5 else torch.zeros(())}


def test_a_term_without_a_gradient_is_met_before_it_trains_nothing(tmp_path, monkeypatch):
    for name, method in (("idle", Idle), ("late", Late)):
        monkeypatch.setitem(METHODS.module_dict, name, method)
    options = Options(device="cpu", threads=1)
    grid, folder = run.plan(write_grid(tmp_path, methods=["idle", "late"]), tmp_path, options=options)
    idle, late = grid.cells
    with pytest.raises(TrialError, match="step: nothing is trained by 'idle', a term without a gradient: compute it from"):
        Trials(folder, options).try_out(idle)
    Trials(folder, options).try_out(late)  # it has one later


def _arrays(**changes):
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (count, 4, 4)).astype(np.uint8) for count in (12, 6))
    labels = {"train_labels": np.arange(12) % 3, "test_labels": np.arange(6) % 3}
    return {"train_images": train, "test_images": test, **labels, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": np.zeros(2**18, "U65")}, "'class_names' take more than 64 MiB"),
        ({"class_names": np.zeros(100_001, "U1")}, "100001 classes; allowed: at most 100000"),
    ],
)
def test_names_of_classes_are_bounded(changes, message, tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **_arrays(**changes))
    with pytest.raises(ValueError, match=message):
        look({"type": "npz", "path": str(tmp_path / "a.npz")})


def test_a_file_that_is_no_archive_is_named_as_such(tmp_path):
    (tmp_path / "a.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"a\.npz is no \.npz file, which is a zip archive of arrays"):
        look({"type": "npz", "path": str(tmp_path / "a.npz")})
    np.savez(tmp_path / "b.npz", **{f"x{number}": np.zeros(1) for number in range(50)})
    with pytest.raises(ValueError, match=r"has no train_images, .*; it holds: x0, .*, x9 and 40 more$"):
        look({"type": "npz", "path": str(tmp_path / "b.npz")})


def test_test_images_that_are_trained_on_are_counted(tmp_path):
    arrays = _arrays()
    arrays["test_images"][:2] = arrays["train_images"][4:6]
    np.savez(tmp_path / "a.npz", **arrays)
    notes = look({"type": "npz", "path": str(tmp_path / "a.npz")}).notes
    assert notes == ("2 of 6 test images are training images, too",)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label,part\n", r"labels\.csv has no row below its header"),
        ("", "has no column 'file'; it has: nothing"),
        ("file,label,label\n0.png,a,b\n", "the column 'label' stands twice in its header"),
        ("file,label,part\n0.png,a,train\n1.png,b,\n", "column 'part' has an empty field, train; needed: train, and one of"),
        ("file,label,part\n0.png,a,train\n1.png,b,train\n0.png,b,test\n", r"line 4: '0\.png' is b here and a in .*, line 2"),
        ("file,label\n0.png,a\n1.png,b\n", "test_share: 0.01 of 2 images is none"),
    ],
)
def test_a_table_of_labels_that_cannot_be_right_is_refused(table, message, tmp_path):
    (tmp_path / "labels.csv").write_text(table)
    for number in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    share = {"test_share": 0.01} if "part" not in table else {}
    with pytest.raises(ValueError, match=message):
        look({"type": "csv", "path": str(tmp_path), "size": 4, **share})


def test_a_file_in_both_parts_of_a_table_is_counted(tmp_path):
    (tmp_path / "labels.csv").write_text("file,label,part\n0.png,a,train\n1.png,b,train\n0.png,a,test\n")
    for number in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    spec = {"type": "csv", "path": str(tmp_path), "size": 4}
    assert look(spec).notes == ("1 of 1 test images are training images, too",)
    assert len(load(spec).train.targets) == 2


def test_an_image_that_a_loader_cannot_read_is_one_line(tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^\S+0\.png cannot be read as an image \(cannot identify .*\)$"):
        list(Crops(Files([str(tmp_path / "0.png")]), 4, None).batches(torch.tensor([0]), 1, torch.device("cpu")))


def test_a_stratified_part_is_drawn_in_one_pass_and_as_before():
    targets = torch.tensor([2, 0, 2, 1, 0, 2, 2, 5, 0, 1])
    assert stratified(targets, 5).tolist() == [0, 1, 5, 8, 9]
    many = torch.arange(50_000)
    assert len(stratified(many, 10)) == 10


def test_a_current_folder_that_is_gone_is_named(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run_bench.main(["status", "quick", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: the current folder was removed; change to another one\n"
