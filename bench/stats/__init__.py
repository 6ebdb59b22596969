"""Statistics of accuracies and costs: tests, intervals, rules for spending seeds. Below plan, run and reports; no torch."""

from bench.stats.bill import break_even
from bench.stats.claims import expected_best
from bench.stats.equivalence import MARGIN, equivalence_p
from bench.stats.intervals import ALPHA, LEVEL, half_interval, median_interval, t_quantile
from bench.stats.planning import POWER
from bench.stats.planning import detectable as _detectable
from bench.stats.ranking import RANKS_FROM, ranks
from bench.stats.table import BASELINES, BOOTSTRAP_FROM, GAIN_COLUMNS, RESAMPLES, gains, holm, verdict, wide
from bench.stats.verdicts import SHOWN, CostVerdict, Verdict

__all__ = [
    "ALPHA",
    "BASELINES",
    "BOOTSTRAP_FROM",
    "GAIN_COLUMNS",
    "LEVEL",
    "MARGIN",
    "POWER",
    "RANKS_FROM",
    "RESAMPLES",
    "SHOWN",
    "CostVerdict",
    "Verdict",
    "_detectable",
    "break_even",
    "equivalence_p",
    "expected_best",
    "gains",
    "half_interval",
    "holm",
    "median_interval",
    "ranks",
    "t_quantile",
    "verdict",
    "wide",
]
