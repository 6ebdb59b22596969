"""Mistakes in grid files: what the messages name."""

from __future__ import annotations

import textwrap

import pytest

from bench.engine.hooks import user_hook
from bench.errors import UserError
from bench.plan import grid_file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["kdd"]}, r"tiny, methods\[0\]: unknown method 'kdd'; did you mean 'kd'\? Known: .*tfd"),
        ({"methods": ["none", "tfd+kdd"]}, r"tiny, methods\[1\]: unknown method 'kdd'"),
        ({"methods": [{"kd": {"temprature": 4}}]}, r"methods\[0\]\.temprature: unknown key.*did you mean 'temperature'"),
        (
            {"methods": [{"every": {"temprature": 4}}]},
            r"methods\[0\]\.temprature: unknown argument of any method .*did you mean 'temperature'",
        ),
        ({"methods": [{"kd": {"temperature": "hot"}}]}, r"methods\[0\]\.temperature: a number, not 'hot'"),
        ({"methods": [{"kd": {"weight": False}}]}, r"methods\[0\]\.weight: a number, not False \(YAML"),
        ({"methods": [{"kd": {"weight": float("nan")}}]}, r"methods\[0\]\.weight: .*finite"),
        ({"methods": [{"kd": {"temperature": -4}}]}, r"methods\[0\]\.temperature: above 0, not -4"),
        ({"methods": [{"tfd": {"ramp_epochs": -5}}]}, r"methods\[0\]\.ramp_epochs: 0 or more, not -5"),
        ({"methods": [{"ls": {"epsilon": 2}}]}, r"methods\[0\]\.epsilon: in \[0, 1\), not 2"),
        ({"methods": [{"tfd+kd": {"tfd": {"weight": -1}}}]}, r"weight: at least 0, not -1"),
        ({"methods": [{"kd": {"weight": []}}]}, r"methods\[0\]\.weight: the list is empty"),
        ({"methods": [{"tfd": {"direction": "sideways"}}]}, r"methods\[0\]\.direction: .*'top_down'.*'sideways'"),
        ({"methods": [{"tfd+kd": {"at": {}}}]}, r"methods\[0\]\.at: unknown part 'at'"),
        ({"methods": [{"tffd": {"preset": "redame"}}]}, r"methods\[0\]\.preset: .*'redame'; did you mean 'readme'"),
        ({"methods": [{"dkd": {"preset": "pair"}}]}, r"dkd has none for resnet8/resnet8; it has: .*resnet56/resnet20"),
        ({"methods": [{"dkd": {"preset": "vgg13/vgg8"}}]}, r"dkd has none for resnet8/resnet8; it has: .*vgg13/vgg8"),
        ({"methods": [{"ab": {"prepare_epochs": -1}}]}, r"methods\[0\]\.prepare_epochs: 1 or more, not -1"),
        (
            {"methods": [{"eskd": {"teacher_epochs_fraction": 0}}]},
            r"methods\[0\]\.teacher_epochs_fraction: in \(0, 1\], not 0",
        ),
        ({"methods": ["kd+ls"]}, "only one part of a sum may change the cross-entropy, but kd and ls do"),
        ({"methods": [{"kd": 4}]}, r"methods\[0\]: write \{name: \{argument: value\}\}"),
        ({"methods": ["kd+tfd", "tfd+kd"]}, r"methods\[1\]: tfd\+kd stands twice"),
        ({"methods": ["none", "none+none"]}, r"methods\[1\]: none adds nothing to none\+none"),
        ({"recipe": {"name": "digits", "validation": 0.001}}, r"recipe\.validation: 0\.001 of \d+ training images is none"),
        ({"methods": ["kd", {"kd": {"temperature": 4}}]}, r"methods\[1\]: kd stands twice"),
        ({"methods": []}, "methods: .*at least 1"),
        ({"methods": ["kd"], "pairs": [{"student": "resnet8"}]}, "expands to nothing. kd on resnet8: needs a teacher"),
        ({"pairs": [{"student": "resnet9"}]}, r"pairs\[0\]\.student: unknown model 'resnet9'; did you mean 'resnet"),
        ({"pairs": [{"studnet": "resnet8"}]}, r"pairs\.0\.studnet: unknown key.*did you mean 'student'"),
        (
            {"pairs": [{"student": {"type": "torchvision", "name": "resnet19"}}]},
            r"pairs\[0\]\.student: .*'resnet19'; nearest: .*resnet18",
        ),
        ({"pairs": [{"student": {"type": "torchvision"}}]}, r"pairs\[0\]\.student: 'torchvision' needs name"),
        (
            {"pairs": [{"student": "resnet8", "teacher": {"type": "resnet8", "weights": 3}}]},
            "teacher.weights: the path of a file",
        ),
        ({"data": "cifar"}, "data: unknown data set 'cifar'; did you mean 'cifar1"),
        ({"data": {"type": "digits", "train_images": -1}}, r"data\.train_images: a number of images"),
        ({"data": {"type": "npz", "path": "nowhere.npz"}}, "data: nowhere.npz is not a file.*--data-root"),
        ({"recipe": "crdd"}, "recipe: unknown recipe 'crdd'; did you mean 'crd'"),
        ({"recipe": {"name": "crd", "epoch": 3}}, r"recipe\.epoch: unknown key 'epoch'; did you mean 'epochs'"),
        ({"recipe": {"name": "crd", "epochs": 0}}, r"recipe\.epochs: a number of 1 or more, not 0"),
        ({"recipe": {"name": "crd", "epochs": 10**400}}, r"recipe\.epochs: a number of at most 1,000,000, not a number of"),
        ({"recipe": {"lr": 1e308}}, r"recipe\.lr: a number of at most 1,000,000, not 1e\+308"),
        ({"recipe": {"crop": "resized", "image_size": 10**8}}, r"recipe\.image_size: a number of at most 4,096"),
        ({"recipe": {"milestones": [0.5] * 1000}}, r"recipe\.milestones: .*at most 100 items"),
        ({"recipe": {"augment": ["auto_augment"] * 1000}}, r"recipe\.augment: 1000 augmentations; allowed: at most 20"),
        ({"recipe": {"crop_padding": 2000}}, "tiny, recipe, crop_padding: 2000 is too much for images of 8x8 pixels"),
        (
            {"recipe": {"padding": "reflect", "crop_padding": 8}},
            "tiny, recipe, crop_padding: 8 is too much to reflect images of 8x8 pixels",
        ),
        (
            {"recipe": {"batch_size": 64, "accumulate": 32}},
            "tiny, recipe, training images: 40 are too few; allowed: at least 64",
        ),
        ({"data": {"type": "digits", "train_images": 10**24}}, r"data\.train_images: at most 1,000,000,000, not 10000000"),
        ({"data": {"type": "digits", "train_images": 1001}}, "data: train_images: 1001 is not possible; allowed: 1 to 1000"),
        ({"data": {"type": "digits", "test_images": 798}}, "data: test_images: 798 is not possible; allowed: 1 to 797"),
        ({"methods": [{"kd": {"weight": 1e300}}]}, r"methods\[0\]\.weight: at most 1,000,000,000, not 1e\+300"),
        ({"methods": [{"ab": {"prepare_epochs": 10**12}}]}, r"methods\[0\]\.prepare_epochs: at most 1,000,000,000"),
        (
            {"methods": [{"tfd": {"weight": [*range(200)], "ramp_epochs": [*range(100)]}}]},
            r"methods\[0\]: 20,000 combinations of values; allowed: at most 10,000",
        ),
        ({"seeds": [*range(60_000)], "methods": ["none", "tfd"]}, "tiny, seeds: 120,000 cells; allowed: at most 100,000"),
        (
            {"pairs": [{"student": "resnet8", "teacher": {"type": "resnet8", "train_s": 10**400}}]},
            r"teacher\.train_s: a number of 0 or more, not a number of \d+ bits",
        ),
        ({"about": "x" * 20_000}, "about: .*at most 10,000 characters, not 'xxx"),
        (
            {"choose": {"share": 1e-8}, "methods": [{"tfd": {"weight": [0.1, 1]}}]},
            r"choose, recipe\.validation: 1e-08 of 40 training images is none",
        ),
        (
            {"methods": [{"eskd": {"preset": "early_teacher"}}], "recipe": {"epochs": 10, "warmup_epochs": 5}},
            "needs a teacher whose training was stopped early: warmup_epochs 5 leaves nothing of 4 epochs",
        ),
        ({"recipe": {"name": "crd", "epochs": True}}, r"recipe\.epochs: a number, not True \(YAML"),
        ({"recipe": {"name": "crd", "dropout": True}}, r"recipe\.dropout: a number, not True \(YAML"),
        ({"recipe": {"schedule": "one_cycle", "warmup_epochs": 2}}, "warmup_epochs has no effect beside schedule one_cycle"),
        ({"seeds": [0, 0]}, "seeds: 0 stands twice"),
        ({"seeds": [-1]}, r"seeds\.0: a number of 0 or more, not -1"),
        ({"seeds": [2**32]}, r"seeds\.0: a number below 4,294,967,296"),
        ({"seeds": [False]}, r"seeds\.0: a whole number, not False"),
        ({"seeds": []}, "seeds: .*at least 1"),
        ({"precision": "fp8"}, "precision: .*'fp32'.*'fp8'"),
        ({"sedes": [0]}, "sedes: unknown key 'sedes'; did you mean 'seeds'"),
        ({"also": [{"recipe": {"cutuot": 8}}]}, r"tiny, also\[0\], recipe\.cutuot: .*did you mean 'cutout'"),
        ({"also": [{"also": []}]}, r"tiny, also\[0\]\.also: unknown key"),
    ],
)
def test_messages_about_mistakes_name_place_value_and_nearest_match(tiny, changes, message):
    with pytest.raises(UserError, match=message) as error:
        tiny(**changes)
    assert str(error.value).startswith("tiny, ") or "tiny: the grid expands" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: digits\npairs: [\nseeds: 0\n", r"g\.yaml:\d+:\d+: not YAML: "),
        ("data: 'digits\n", r"g\.yaml:2:1: not YAML: "),
        ("- data\n- seeds\n", "a grid is a mapping with keys about, data"),
        ("data: digits\nrecipe: {name: digits, lr: 0.1, lr: 0.5}", r"g\.yaml:2:33: not YAML: the key 'lr' stands twice"),
        ("seeds: [0]\nmethods: [none]\nseeds: [1]", r"g\.yaml:3:1: not YAML: the key 'seeds' stands twice"),
        ("recipe: {name: digits, lr: 0,05}", r"g\.yaml:1:\d+: not YAML: the key '05' is no word; .* 0\.05"),
        ("data: " + "[" * 60 + "]" * 60, "not YAML: at most 40 levels"),
        ("data: " + "[" * 9000 + "]" * 9000, "not YAML: at most 40 levels"),
        ("data: !!python/object:os.system {}\n", r"g\.yaml:1:7: not YAML: the tag .!!python/object:os.system. stands for no"),
    ],
)
def test_a_file_that_is_no_grid_is_refused(tmp_path, text, message):
    file = tmp_path / "g.yaml"
    file.write_text(textwrap.dedent(text))
    with pytest.raises(UserError, match=message):
        grid_file.read(str(file))


def test_an_unknown_grid_names_the_nearest():
    with pytest.raises(UserError, match="unknown grid 'paper_tabel1'; did you mean 'paper_table1'"):
        grid_file.read("paper_tabel1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.epochs", "write key=value"),
        ("recipe.epochs=[1", "not YAML"),
        ("seeds.first=1", "'seeds' is a list; set all of it"),
    ],
)
def test_an_override_that_cannot_be_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        grid_file.read("quick", [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=[010]", "1:2: not YAML: '010' is no decimal number in YAML; leave out zeros before it, and colons"),
        ("recipe.epochs=1:30", "'1:30' is no decimal number in YAML"),
        ("about=!!bool x", "a value does not have the kind that its tag, such as !!bool, names"),
        ('about="\\ud800"', r"'\\ud800' has a character that no text or file name has"),
        ('data={type: npz, path: "a\\0"}', "has a character that no text or file name has"),
        ("about={? [a] : 1}", "the key in column 4 is no word"),
        ("a" * 9000 + "=[", r"--set aaa.{127}\.\.\.: no key is as long"),
    ],
)
def test_what_yaml_would_read_as_something_else_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        grid_file.read("quick", [override])


def test_dates_are_texts_and_zero_has_no_sign():
    _, raw = grid_file.read("quick", ["about=2026-01-01", "margin=-0.0", "seeds=[0, 10]"])
    assert raw["about"] == "2026-01-01"
    assert str(raw["margin"]) == "0.0"
    assert raw["seeds"] == [0, 10]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": float("inf")}, "margin: a finite number, not inf"),
        ({"teacher_seeds": False}, "teacher_seeds: first, each or a number, not False"),
        ({"pairs": [None]}, r"pairs\.0: a mapping, not None"),
        ({"methods": [".kd"]}, r"unknown method '\.kd'; did you mean 'kd'"),
        ({"recipe": {"milestones": [False]}}, r"milestones: a number, not \[False\]"),
        ({"recipe": {"augment": False}}, "augment: a name, a mapping with `type`, or a list of these, not False"),
        ({"data": {"type": "npz", "path": "~nobody-of-that-name/x.npz"}}, "there is no user ~nobody-of-that-name"),
        (
            {"data": {"type": "npz", "path": "x.npz", "name": "a\nb"}},
            r"data\.name: a line of at most 200 characters, not 'a\\nb'",
        ),
    ],
)
def test_messages_name_kinds_in_the_words_of_a_grid_file(tiny, changes, message):
    with pytest.raises(UserError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("name", ["broken_module.Some", "this.s", "a..b", "."])
def test_a_dotted_name_that_leads_nowhere_is_refused(name, tiny, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("raise OSError('no luck')\n")
    monkeypatch.syspath_prepend(tmp_path)
    why = r"cannot be imported: OSError: no luck" if "broken" in name else "unknown method"
    with pytest.raises(UserError, match=rf"^tiny, methods\[0\]: .*{why}"):
        tiny(methods=[name])
    with pytest.raises(UserError, match=r"^tiny, pairs\[0\]\.student: .*" + why.replace("method", "model")):
        tiny(pairs=[{"student": name}])
    with pytest.raises(UserError, match=r"^data: .*no luck" if "broken" in name else "^tiny, data: unknown data set"):
        tiny(data={"type": name, "name": "x"})
    why = why if "broken" in name else "it is no subclass" if name == "this.s" else "there is no such class"
    with pytest.raises(UserError, match=rf"^--hook.*{why}"):
        user_hook(name)
