"""What `make gpu` measured on a GPU, for docs/speed.md, from its lines and the records trained there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.records.record import Record

Line = dict[str, Any]
STEPS = 187_680  # of 240 epochs of CIFAR-100 in batches of 64


def markdown(driven: dict[str, Any], records: Sequence[Record]) -> str:
    """Steps one by one and from a graph, what the checks found, and the groups of cells that trained there.

    Args:
        driven: the machine, the driver's lines, and under `later` those of steps with fewer kernels, on the same machine.
        records: trained on that machine.
    """
    machine, lines = driven["machine"], driven["lines"]
    versions = machine["versions"]
    steps = [line for line in lines if line["part"] == "speed" and line["cells"] == 1]
    later = {(line["what"], line["precision"]): line["step_ms"] for line in driven["later"] if line["cells"] == 1}
    kernels = {(line["what"], line.get("precision")): line for line in lines if line["part"] == "kernels" and "busy_us" in line}
    text = [
        f"{machine['device']}, {machine['cpu']}, torch {versions['torch']}, CUDA {versions['cuda']}; resnet20, batch 64, "
        "with resnet110 where a teacher is needed. Medians of three turns:",
        "",
        "| method | precision | one by one, ms | from a graph, ms | times as fast | kernels | later, ms "
        "| 240 epochs of CIFAR-100 |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for graph in (line for line in steps if line["ran"] == "graph"):
        key = graph["what"], graph["precision"]
        [eager] = [line for line in steps if (line["what"], line["precision"]) == key and line["path"] == "eager"]
        slow, fast = eager["step_ms"], graph["step_ms"]
        count = f"{kernels[key]['kernels']:.0f}" if key in kernels else "–"
        now = later.get(key)
        times = f"{slow:.2f} | {fast:.2f} | {slow / fast:.1f} | {count} | {f'{now:.2f}' if now else '–'}"
        times += f" | {(now or fast) * STEPS / 1000:.0f} s"
        text.append(f"| {key[0]} | {key[1]} | {times} |")
    text += ["", _found(lines), _kernels(lines), _branches(driven["later"]), *(f"- {words}" for words in _groups(records)), ""]
    return "\n".join(text)


def _found(lines: Sequence[Line]) -> str:
    """What the checks found."""
    captured = [line for line in lines if line["part"] == "capture"]
    same = [line for line in lines if line["part"] == "same_as_cpu"]
    resumed = [line for line in lines if line["part"] == "resume"]
    others = ", ".join(f"`{line['what']}`" for line in same if not line["same"])
    graphs, equal, resumes = (
        f"{sum(holds(line) for line in kind)} of {len(kind)}"
        for kind, holds in (
            (captured, lambda line: line["path"] == "graph"),
            (same, lambda line: line["same"]),
            (resumed, lambda line: line["resumes"]),
        )
    )
    return (
        f"{graphs} kinds of steps, of every method, give the same from a graph. {equal} have the CPU's loss terms in fp32"
        f"{f'; not {others}' if others else ''}. {resumes} interrupted trainings ended with the weights of undisturbed ones.\n"
    )


def _kernels(lines: Sequence[Line]) -> str:
    """What the profiler, and other ways to compute the same, say."""
    kernels = [line for line in lines if line["part"] == "kernels"]
    [busy] = [line for line in kernels if "busy_us" in line and (line["what"], line["precision"]) == ("none", "bf16")]
    choices = {(line["deterministic"], line["benchmark"]): line["step_ms"] for line in kernels if "benchmark" in line}
    fused = [line["apart_us"] / line["together_us"] for line in kernels if line["what"].endswith("bfloat16")]
    share, low, high = busy["busy_us"] / 10 / choices[True, False], min(choices.values()), max(choices.values())
    return (
        f"During a step of `none` in bf16, kernels run for {share:.0f} % of the time: they, not their launches, take it. "
        f"cuDNN's other choices of kernels take {low:.2f} to {high:.2f} ms. A teacher's convolution, bias, addition and ReLU "
        f"take {min(fused):.1f} to {max(fused):.1f} times as long as one fused kernel, which teachers use since.\n"
    )


def _branches(lines: Sequence[Line]) -> str:
    """What a step costs each of several trainings that share it."""
    groups = [line for line in lines if line["what"] == "group"]
    first, *others = [(f"{line['ms_a_cell']:.2f} ms", line["cells"]) for line in groups]
    most = max(groups, key=lambda line: line["cells"])
    return (
        f"Where {first[1]} trainings share a step, most of them with the teacher, it takes {first[0]} for each of them; "
        f"{', '.join(f'{each} where {count} share it' for each, count in others)}. So 240 epochs take "
        f"{most['ms_a_cell'] * STEPS / 1000:.0f} s each where {most['cells']} share a step.\n"
    )


def _groups(records: Sequence[Record]) -> list[str]:
    """Cells that trained in one step: as many as neighbours, with one clock."""
    groups: dict[tuple[float, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.clocks.train_s, record.neighbours + 1), []).append(record)
    words = []
    for (seconds, size), members in sorted(groups.items(), key=lambda item: -item[0][1]):
        if len(members) == size > 1:
            each = f"{seconds:.0f} s, {seconds / size:.0f} s each"
            words.append(f"{size} trainings at once, {_names(members)}, of {members[0].epochs} epochs: {each}")
    return words


def _names(records: Sequence[Record]) -> str:
    counts: dict[str, int] = {}
    for record in records:
        name = f"{record.cell.label} ({record.cell.student['type']})"
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} of {name}" for name, count in counts.items())
