"""A sign for each claim, where there is no room for words."""

from __future__ import annotations

from bench.stats import SHOWN, CostWord, Word

SIGNS: dict[str | None, str] = {
    **{f"gain {word}": "▲" for word in SHOWN},
    **{f"loss {word}": "▼" for word in SHOWN},
    f"gain {Word.SUGGESTED}": "△",
    f"loss {Word.SUGGESTED}": "▽",
    Word.EQUIVALENT: "=",
    Word.OPEN: "○",
    Word.NOT_TESTED: "?",
    Word.UNFINISHED: "…",
    CostWord.MORE: "▲",
    CostWord.LESS: "▼",
    CostWord.APART: "~",
}
LEGEND = (
    "▲ gain shown, ▼ loss shown, △ ▽ only suggested, = equivalent, ○ open, ? not tested, … unfinished; "
    "intervals are simultaneous and agree with the signs."
)
