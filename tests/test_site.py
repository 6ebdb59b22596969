"""The reports of several grids with a start page, as a web server shows them."""

from __future__ import annotations

import re

import numpy as np
import synthetic

import run_bench
from bench.records.folders import ResultsFolder

RECORDS = synthetic.draw({"none": 0, "kd": 1}, 3, np.random.default_rng(0))
HOSTILE = "<script>alert(1)</script>"


def links(html):
    return [link.partition("#")[0] for link in re.findall(r'href="([^"#][^"]*)"', html) if not link.startswith("data:")]


def test_every_grid_is_on_the_start_page_and_every_link_is_relative_and_leads_somewhere(tmp_path, capsys):
    synthetic.filled(tmp_path / "results", "one", RECORDS, about=HOSTILE)
    synthetic.filled(tmp_path / "results", "two+more", [])
    site = tmp_path / "site"
    assert run_bench.main(["report", "--results", str(tmp_path / "results"), "--site", str(site)]) == 0
    start = (site / "index.html").read_text(encoding="utf-8")
    assert HOSTILE not in start
    assert "&lt;script&gt;" in start
    assert set(links(start)) == {"one/report.html", "two%2Bmore/report.html"}
    assert "No student has been trained yet." in start
    assert "<svg" in start
    for folder in ("one", "two+more"):
        html = (site / folder / "report.html").read_text(encoding="utf-8")
        assert '<a href="../index.html">All grids</a>' in html
        assert all((site / folder / link).is_file() for link in links(html))
    assert (site / ".nojekyll").is_file()
    assert "index.html" in capsys.readouterr().out
    assert not (tmp_path / "results/one/report").exists()
    report = ResultsFolder(tmp_path / "results").grid("one").report_folder()
    assert run_bench.main(["report", "one", "--results", str(tmp_path / "results")]) == 0
    assert "All grids" not in (report / "report.html").read_text(encoding="utf-8")


def test_a_grid_without_a_report_is_named(tmp_path, capsys):
    synthetic.filled(tmp_path / "results", "good", RECORDS)
    synthetic.filled(tmp_path / "results", "broken", [])
    (tmp_path / "results/broken/manifest.json").write_text("no JSON")
    assert run_bench.main(["report", "--results", str(tmp_path / "results"), "--site", str(tmp_path / "site")]) == 1
    assert "broken: " in capsys.readouterr().out
    start = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert "good/report.html" in start
    assert "<strong>broken</strong>" in start


def test_a_site_of_one_grid_and_of_none(tmp_path, capsys):
    for name in ("one", "two"):
        synthetic.filled(tmp_path / "results", name, [])
    at = ["--results", str(tmp_path / "results")]
    assert run_bench.main(["report", "two", *at, "--site", str(tmp_path / "site")]) == 0
    assert links((tmp_path / "site/index.html").read_text(encoding="utf-8")) == ["two/report.html"]
    for inside in ("results", "results/one", "results/new/site"):
        assert run_bench.main(["report", *at, "--site", str(tmp_path / inside)]) == 2
        assert "lies in the results folder itself; name a folder elsewhere" in capsys.readouterr().err
    assert not (tmp_path / "results/one/index.html").exists()
    assert run_bench.main(["report", "--results", str(tmp_path / "empty"), "--site", str(tmp_path / "site")]) == 2
    assert ResultsFolder(tmp_path / "results").grids() == ["one", "two"]


def test_what_looks_like_a_grid_is_not_hidden(tmp_path, capsys):
    synthetic.filled(tmp_path / "far", "moved", RECORDS)
    synthetic.filled(tmp_path / "results", "good", [])
    at = ["--results", str(tmp_path / "results")]
    assert run_bench.main(["verify", "--all", *at]) == 0
    (tmp_path / "results/moved").symlink_to(tmp_path / "far/moved")
    (tmp_path / "results/data").symlink_to(tmp_path)  # no grid
    (tmp_path / "results/loop").symlink_to("loop")
    synthetic.filled(tmp_path / "results", "lost", RECORDS)
    (tmp_path / "results/lost/manifest.json").unlink()
    (tmp_path / "results/good").rename(tmp_path / "results/My Grid")
    capsys.readouterr()
    assert run_bench.main(["verify", "--all", *at]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["My Grid", "lost/manifest.json", "moved"]
    assert "moved: it is a link: nothing below a results folder is reached through links" in lines[2]
    assert last == "0 grids, 3 problems"
    assert run_bench.main(["report", *at, "--site", str(tmp_path / "site")]) == 2
    assert "moved: it is a link" in capsys.readouterr().err
    assert run_bench.main(["merge", str(tmp_path / "results"), "--results", str(tmp_path / "ours")]) == 2
    assert "moved: it is a link" in capsys.readouterr().err
    (tmp_path / "results/My Grid").rename(tmp_path / "results/good")
    assert run_bench.main(["report", *at, "--site", str(tmp_path / "site")]) == 1
    assert "moved: it is a link" in capsys.readouterr().out
    assert "<strong>moved</strong>" in (tmp_path / "site/index.html").read_text(encoding="utf-8")
