"""What users wrote is printed as they wrote it: no markup, no control characters, no value at any length."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import pytest
import synthetic
from pydantic import BaseModel, Field, ValidationError
from rich.table import Table
from rich.text import Text

import run_bench
from bench import command_line
from bench.errors import UserError, unknown
from bench.plan import grid_file
from bench.records.board import places
from bench.records.folders import ResultsFolder
from bench.screen import Screen
from bench.texts import bounded, brief, misfit, visible
from bench.user_files import parse
from reports.frame import tidy_by
from reports.page import environment
from reports.tables.latex import escaped
from reports.tables.table import as_csv, markdown_text

NASTY = "dkd[pair] [/x] [bold]b :smile: \x1b[31mred\x1b]0;t\x07 \u202egpj \udc80"


def bomb(item: str) -> str:
    """A YAML text of 1 kB that stands for 9^8 values."""
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]" if item == "list" else "a: &a {k: 1}"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        inner = "[" + ", ".join(9 * [f"*{before}"]) + "]"
        lines.append(f"{name}: &{name} {inner if item == 'list' else f'{{<<: {inner}}}'}")
    return "\n".join(lines)


@pytest.mark.parametrize("put", [str, Text, lambda text: Text.assemble(text), lambda text: _table(text)])
def test_the_screen_shows_markup_and_control_characters(put):
    screen = Screen(file=(output := io.StringIO()), width=200, force_terminal=True, color_system=None)
    screen.print(put(NASTY))
    for part in ("dkd[pair] [/x] [bold]b :smile:", r"\x1b[31mred", r"\u202egpj", r"\udc80"):
        assert part in output.getvalue()
    assert not set(output.getvalue()) & set("\x1b\x07\u202e\udc80")


def _table(text: str) -> Table:
    table = Table("a")
    table.add_row(text)
    return table


def test_a_new_line_in_a_name_begins_no_line_of_ours(tmp_path, monkeypatch, capsys):
    synthetic.filled(tmp_path, "g", [])
    (tmp_path / "g" / "x\n0 problems").mkdir()
    assert run_bench.main(["verify", "g", "--results", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[0].startswith(r"g/x\n0 problems: is no cell")
    assert run_bench.main(["report", "a\nb", "--results", str(tmp_path / "x\ny")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    Screen(file=(output := io.StringIO()), width=200).print("a\nb", Text("c\nd"))
    assert output.getvalue() == "a\\nb c\nd\n"


@pytest.mark.parametrize("kind", ["list", "merge"])
def test_aliases_count_as_what_they_stand_for(kind):
    with pytest.raises(UserError, match=r"g: not YAML: at most 100,000 values"):
        parse(bomb(kind), "g")
    assert parse("a: &a {k: 1}\nb: {<<: *a, j: [*a]}", "g") == {"a": {"k": 1}, "b": {"k": 1, "j": [{"k": 1}]}}
    with pytest.raises(UserError, match="at most 40 levels"):
        parse("a: &a [*a]", "g")


def test_values_in_errors_are_brief():
    values = ["x" * 10**6, list(range(10**5)), {str(i): [[[["y" * 10**4]]]] for i in range(10**4)}, 16**50_000]
    for value in values:
        assert len(brief(value)) < 500
        assert len(str(unknown("method", value, ["kd"]))) < 700
    assert len(bounded("\x1b" * 10**6)) < 20_000
    with pytest.raises(UserError) as error:
        grid_file.variations(
            "g", {"data": "digits", "seeds": [0], "pairs": [{"student": list(range(10**5))}], "methods": ["kd"]}
        )
    assert len(str(error.value)) < 300


def test_an_error_of_a_verb_sends_no_control_characters(monkeypatch, capsys):
    def fails(given):
        raise UserError(NASTY)

    monkeypatch.setitem(command_line.VERBS, "fails", command_line.Verb(fails, "", ()))
    assert command_line.run(command_line.Given(verb="fails")) == 2
    assert capsys.readouterr().err == f"error: {visible(NASTY)}\n"


def test_a_terminal_that_lacks_letters_gets_a_question_mark(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii"))
    monkeypatch.setitem(
        command_line.VERBS, "shows", command_line.Verb(lambda given: command_line.console().print("a – b"), "", ())
    )
    assert command_line.run(command_line.Given(verb="shows")) == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"a ? b\n"


def test_output_that_nobody_reads_ends_a_verb_without_a_word():
    code = (
        "from bench import command_line as c; import sys\n"
        "c.VERBS['x'] = c.Verb(lambda given: [c.console().print('x' * 500) for _ in range(500)] and None, '', ())\n"
        "sys.exit(c.run(c.Given(verb='x')))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=60)) == (
            b"",
            141,
        )  # as a shell shows of programs that end by SIGPIPE


def test_a_file_of_results_is_found_by_the_name_of_its_grid_file(tmp_path):
    from bench.records.cell import named_after

    assert [named_after(name) for name in ("Exp", "My Grid (1)", "a/b", "..")] == ["exp", "my-grid-1", "a/b", ".."]
    (tmp_path / "中.yaml").write_text("data: digits")
    with pytest.raises(UserError, match="needs a letter a-z or a digit"):
        grid_file.read(str(tmp_path / "中.yaml"))


def test_a_decimal_comma_and_nothing_are_named():
    base = {"data": "digits", "seeds": [0], "pairs": [{"student": "resnet8"}]}
    with pytest.raises(UserError, match=r"g, methods\.0: a name or a mapping, not None"):
        grid_file.variations("g", base | {"methods": [None]})


def test_no_cell_of_a_csv_is_a_formula():
    frame = pd.DataFrame(
        {"label": ["=HYPERLINK(1)", "@x", "kd", "+kd"], "gain": [-1.5, 2.0, float("nan"), 0.0], "n": [1, 2, 3, 4]}
    )
    assert as_csv(frame) == "label,gain,n\n'=HYPERLINK(1),-1.5,1\n'@x,2.0,2\nkd,,3\n'+kd,0.0,4\n"
    assert as_csv(pd.DataFrame({"=1": ["\n=1", "＝1", "\x1b="]})) == "'=1\n\"'\n=1\"\n'＝1\n\\x1b=\n"


def test_no_text_of_a_report_obeys(tmp_path):
    """What turns a text's direction, or is not seen, is spelled out wherever a method's name stands."""
    records = synthetic.draw({"none": 0.0, "tfd": 1.0}, 2, np.random.default_rng(0))
    folder = synthetic.filled(tmp_path, "g", records)
    label, shown = "mine\u202e\n\x1b\u200b\u061c", r"mine\u202e\n\x1b\u200b\u061c"
    cells = [
        cell | ({"label": label, "own_label": True} if cell["label"] == "tfd" else {}) for cell in folder.manifest()["cells"]
    ]
    folder.write_manifest({"cells": cells, "about": label, "skipped": [{"what": label, "reason": label}]})
    assert set(tidy_by(folder.manifest(), records)["label"]) == {"none", shown}
    assert places(cells)[cells[-1]["id"]].method in ("none", shown)
    assert environment().from_string("{{ a }} {{ b | tojson }}").render(a=label, b=1) == shown.replace(r"\n", "\n") + " 1"
    assert markdown_text(label) == shown.replace(r"\n", " ").replace("\\", r"\\")
    assert escaped("\u202e\0") == r"\textbackslash{}u202e\textbackslash{}x00"


@pytest.mark.parametrize(("columns", "wide"), [("0", True), ("-5", True), ("many", True), ("40", False)])
def test_a_width_that_is_none_is_ignored(monkeypatch, capsys, columns, wide):
    monkeypatch.setenv("COLUMNS", columns)
    command_line.console().print("x" * 60)
    assert ("x" * 60 in capsys.readouterr().out) is wide


def test_a_stream_that_is_closed_is_written_to_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert run_bench.main(["list", "recipes"]) == 0


@pytest.mark.parametrize(
    "verb", ["plan G", "plan quick --set G=1", "plan quick --set G", "verify quick --results /G", "plan quick --import G"]
)
@pytest.mark.parametrize("long", ["a" * 5000, "a b " * 1200])
def test_errors_show_a_part_of_what_is_long(verb, long, capsys):
    assert run_bench.main([word.replace("G", long) for word in verb.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error) < 600
    assert error.count("a") < 350


def test_a_results_folder_that_is_a_link_to_itself_is_named_as_such(tmp_path, capsys):
    (loop := tmp_path / "loop").symlink_to("loop")
    for verb in ("plan", "report", "verify"):
        assert run_bench.main([verb, "quick", "--results", str(loop)]) == 2
        assert capsys.readouterr().err == f"error: {loop}: a link that leads to itself\n"
    with pytest.raises(UserError, match="loop is a link that leads to itself"):
        ResultsFolder(loop).grid("g").manifest()


def test_every_kind_of_misfit_is_in_plain_english():
    class Model(BaseModel, extra="forbid"):
        need: int
        number: Annotated[float, Field(gt=0, le=1e6)] = 1
        word: Literal["a", "b"] = "a"
        flag: bool = False
        texts: Annotated[list[str], Field(min_length=1, max_length=3)] = ["x"]
        pair: tuple[int, int] = (1, 1)
        table: dict[str, int] = {}
        text: Annotated[str, Field(max_length=2)] = ""

    expected = {
        "need": [("1,5", "a whole number, not '1,5'; decimals take a point, not a comma"), (None, "a whole number, not None")],
        "number": [
            (0, "a number above 0, not 0"),
            (2e6, "a number of at most 1,000,000, not 2000000.0"),
            ([], "a number, not []"),
        ],
        "word": [("c", "'a' or 'b', not 'c'")],
        "flag": [("perhaps", "true or false, not 'perhaps'")],
        "texts": [
            ([], "at least 1 item, not []"),
            ("x", "a list, not 'x'"),
            (["x"] * 4, "at most 3 items, not ['x', 'x', 'x', 'x']"),
        ],
        "pair": [((1,), "a value is missing"), (7, "a list, not 7")],
        "table": [(3, "a mapping, not 3")],
        "text": [(3, "a text, not 3"), ("xyz", "at most 2 characters, not 'xyz'")],
    }
    for key, cases in expected.items():
        for value, words in cases:
            with pytest.raises(ValidationError) as error:
                Model.model_validate({"need": 1, key: value})
            assert misfit(error.value.errors()[0]) == words
    with pytest.raises(ValidationError) as error:
        Model.model_validate({})
    assert misfit(error.value.errors()[0]) == "the key is missing"
