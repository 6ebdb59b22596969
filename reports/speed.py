"""Tables of `run_bench.py speed`, from what `--json` prints: for the terminal and for docs/speed.md."""

from __future__ import annotations

from typing import Any

from bench.screen import Table

Report = dict[str, Any]  # `bench.measure.speed.Report` as JSON
Spread = dict[str, float]  # "median", "low" and "high": median and quartiles


SPELLING = {"fused optimiser": "fused optimizer"}  # records of former versions spell it so


def tables(report: Report) -> list[Table | str]:
    """For the terminal: what its console prints, in order."""
    shown: list[Table | str] = [_rows(report)]
    for case, pieces in report["ablations"].items():
        table = Table("without", "step takes", title=f"\n{case}")
        for name, spread in pieces.items():
            table.add_row(name, f"{spread['median']:.2f} times as long ({spread['low']:.2f} to {spread['high']:.2f})")
        shown.append(table)
    for case, share in report["together"].items():
        quartiles = f"({share['low']:.2f} to {share['high']:.2f})"
        shown.append(f"in lock-step, {case}: {share['median']:.2f} of the time apart {quartiles}")
    over = report["overhead_us"]
    shown.append(f"engine overhead over a bare loop: {over['median']:.0f} µs a step ({over['low']:.0f} to {over['high']:.0f})")
    return shown


def _rows(report: Report) -> Table:
    """Pairs and methods: this engine beside the usual loop."""
    machine, limits = report["machine"], report["limits"]
    hardware = machine["cpu"] if machine["device"] == "cpu" else f"{machine['device']} / {machine['cpu']}"
    peaks = ", ".join(f"{value:,.0f} GFLOP/s {name}" for name, value in limits["matrix_gflops_per_s"].items())
    about = f"{hardware} x{machine['cores']}, {report['threads']} threads; limits: {peaks}, "
    about += f"memory {limits['memory_gb_per_s']:.1f} GB/s"
    head = ("student", "teacher", "method", "images/s", "usual loop", "ratio (quartiles)", "GFLOP/s", "of the peak")
    unneeded = [head.index(column) for column in ("GFLOP/s", "of the peak", "usual loop")]
    table = Table(*head, title=about, last_needed=unneeded)
    for row in report["rows"]:
        ratio = f"{row['ratio']['median']:.2f} ({row['ratio']['low']:.2f} to {row['ratio']['high']:.2f})"
        speeds = f"{row['images_per_s']['median']:,.0f}", f"{row['usual_images_per_s']['median']:,.0f}"
        rates = f"{row['gflops_per_s']:,.0f}", f"{100 * row['peak_share']:.0f} %"
        table.add_row(row["student"], row["teacher"], row["method"], *speeds, ratio, *rates)
    return table


def markdown(report: Report) -> str:
    """For docs/speed.md: medians, quartiles in brackets."""
    machine, limits = report["machine"], report["limits"]
    peaks = ", ".join(f"{value:,.0f} GFLOP/s in {name}" for name, value in limits["matrix_gflops_per_s"].items())
    lines = [
        f"{machine['cpu']}, {report['threads']} threads, torch {machine['versions']['torch']}, batch {report['batch_size']}. "
        f"The machine's measured limits: {peaks}, {limits['memory_gb_per_s']:.0f} GB/s.",
        "",
        "| student | teacher | method | images/s | usual loop | times as fast | of the matrix peak | 240 epochs of CIFAR-100 |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        speeds = f"{row['images_per_s']['median']:,.0f} | {row['usual_images_per_s']['median']:,.0f}"
        names = f"{row['student']} | {row['teacher'] or '–'} | {row['method']}"
        hours = 240 * 50_000 / row["images_per_s"]["median"] / 3600  # a training as most papers on CIFAR-100 have it
        lines.append(
            f"| {names} | {speeds} | {_with_quartiles(row['ratio'])} | {100 * row['peak_share']:.0f} % | {hours:.1f} h |"
        )
    pieces = list(dict.fromkeys(piece for case in report["ablations"].values() for piece in case))
    if pieces:
        lines += ["", "How many times as long a step takes with one piece switched off, all others in place:", ""]
        lines += [f"| without | {' | '.join(report['ablations'])} |", "|---" * (1 + len(report["ablations"])) + "|"]
        for piece in pieces:
            cells = [_with_quartiles(case[piece]) if piece in case else "–" for case in report["ablations"].values()]
            lines.append(f"| {SPELLING.get(piece, piece)} | {' | '.join(cells)} |")
    lines += ["", "240 epochs of CIFAR-100 are 12 million images; that column counts training steps alone.", ""]
    lines += [f"The engine's overhead over a bare loop is {report['overhead_us']['median']:.0f} µs a step."]
    return "\n".join(lines) + "\n" + lock_step_markdown(report)


def lock_step_markdown(report: Report) -> str:
    """What `run --together` saves, a line for each student."""
    return "".join(
        f"In lock-step, {case} together take {_with_quartiles(share)} of the time they take apart.\n"
        for case, share in report["together"].items()
    )


def _with_quartiles(value: Spread) -> str:
    return f"{value['median']:.2f} ({value['low']:.2f}–{value['high']:.2f})"
