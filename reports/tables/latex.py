"""Tables as LaTeX: narrow ones fill a column of a paper, others are shrunk where they are wider than the text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.texts import visible

BREAKS = "(,+_"  # signs after which a name may go on in the next line

_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "÷": r"$\div$",
    "→": r"$\rightarrow$",
    "–": "--",
    "…": r"\ldots{}",
    "<": r"$<$",
    ">": r"$>$",
}
_SIGNS |= {"▲": r"$\uparrow$", "▼": r"$\downarrow$", "△": r"($\uparrow$)", "▽": r"($\downarrow$)", "○": r"$\circ$"}
_SIGNS |= {char: "\\" + char for char in "&%$#_{}"}
_SHRINK = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"  # \width: as wide as it would be


def escaped(value: str) -> str:
    """Any text as one line of LaTeX that shows it and does nothing else."""
    return "".join(_SIGNS.get(char, char) for char in " ".join(visible(value).split()))


def table(
    name: str, caption: str, titles: Sequence[str], numeric: Sequence[bool], rows: Sequence[Sequence[str]], narrow: bool = False
) -> str:
    """A booktabs table.

    Args:
        titles, numeric: of the columns; numbers stand to the right.
        narrow: whether the table fills a column, its first column broken into lines as need be.
    """
    aligned = ["r" if each else "l" for each in numeric]
    if narrow:
        head = [r"% needs \usepackage{booktabs,tabularx}", r"\begin{table}", r"  \centering", r"  \footnotesize"]
        aligned = [r">{\raggedright\arraybackslash}X", *aligned[1:]]
        begin, end = f"  \\begin{{tabularx}}{{\\linewidth}}{{@{{}}{''.join(aligned)}@{{}}}}", [r"  \end{tabularx}"]
        float_name = "table"
    else:
        head = [r"% needs \usepackage{booktabs,graphicx}", r"\begin{table*}", r"  \centering", r"  \small"]
        begin, end = f"  {_SHRINK}\n  \\begin{{tabular}}{{@{{}}{''.join(aligned)}@{{}}}}", [r"  \end{tabular}}"]
        float_name = "table*"
    label = re.sub(r"[^a-z0-9]+", "-", name.lower())
    body = [[_broken(row[0]) if narrow else escaped(row[0]), *map(escaped, row[1:])] for row in rows]
    lines = [" & ".join(row) + r" \\" for row in [list(map(_stacked, titles)), *body]]
    return "\n".join(
        [
            *head,
            r"  \setlength{\tabcolsep}{3pt}",
            f"  \\caption{{{escaped(caption)}}}\\label{{tab:{label}}}",
            begin,
            r"    \toprule",
            "    " + lines[0],
            r"    \midrule",
            *("    " + line for line in lines[1:]),
            r"    \bottomrule",
            *end,
            f"\\end{{{float_name}}}",
            "",
        ]
    )


def pieces(name: str) -> list[str]:
    """What a name is broken into at most."""
    return [piece for piece in re.split(rf"(?<=[{re.escape(BREAKS)}])|\s+", name) if piece]


def stacked(title: str) -> list[str]:
    """The one or two lines of a heading."""
    words = title.split()
    if len(title) <= 8 or len(words) < 2:
        return [title]
    cuts = [(" ".join(words[:at]), " ".join(words[at:])) for at in range(1, len(words))]
    return list(min(cuts, key=lambda lines: max(map(len, lines))))


def _broken(name: str) -> str:
    return " ".join(r"\allowbreak{}".join(map(escaped, pieces(word))) for word in name.split())


def _stacked(title: str) -> str:
    lines = stacked(title)
    joined = r" \\ ".join(map(escaped, lines))
    return joined if len(lines) == 1 else rf"\shortstack{{{joined}}}"
