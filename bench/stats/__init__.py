"""Statistics of accuracies and costs: tests, intervals, rules for spending seeds. Below plan, run and reports; no torch."""

from bench.stats.bill import BreakEven, Price, break_even, price, students_to_share, with_search
from bench.stats.claims import (
    BEST_MINUS_LAST,
    BEST_MINUS_LAST_MEDIAN,
    BEST_MINUS_LAST_MOST,
    ClaimCheck,
    ClaimWord,
    best_minus_last,
    check_claim,
    expected_best,
)
from bench.stats.designs import detectable_under
from bench.stats.images import McNemar, TwoWay, agreement, mcnemar, two_way
from bench.stats.intervals import ALPHA, LEVEL, half_interval, median_interval, t_quantile
from bench.stats.looks import look_factor, look_number
from bench.stats.paired import (
    DETECTABLE_MOST,
    SHOWN,
    Decision,
    Estimate,
    Floats,
    Word,
    correlation,
    decide,
    detectable_gain,
    estimate,
    pooled_spread,
)
from bench.stats.pairs import COMPONENTS_FROM, components, like_these, over_these, profile
from bench.stats.planning import POWER
from bench.stats.ranking import RANKS_FROM, Ranking, rank_students
from bench.stats.ratios import (
    CLOSE,
    CostRatio,
    CostWord,
    apart_ratio,
    flops_ratio,
    time_ratio,
    wants_second_session,
)
from bench.stats.sequential import MARGIN, SeedRule, follow
from bench.stats.teachers import TeacherSpread, by_teacher, over_teachers, teacher_spread

__all__ = [
    "ALPHA",
    "BEST_MINUS_LAST",
    "BEST_MINUS_LAST_MEDIAN",
    "BEST_MINUS_LAST_MOST",
    "CLOSE",
    "COMPONENTS_FROM",
    "DETECTABLE_MOST",
    "LEVEL",
    "MARGIN",
    "POWER",
    "RANKS_FROM",
    "SHOWN",
    "BreakEven",
    "ClaimCheck",
    "ClaimWord",
    "CostRatio",
    "CostWord",
    "Decision",
    "Estimate",
    "Floats",
    "McNemar",
    "Price",
    "Ranking",
    "SeedRule",
    "TeacherSpread",
    "TwoWay",
    "Word",
    "agreement",
    "apart_ratio",
    "best_minus_last",
    "break_even",
    "by_teacher",
    "check_claim",
    "components",
    "correlation",
    "decide",
    "detectable_gain",
    "detectable_under",
    "estimate",
    "expected_best",
    "flops_ratio",
    "follow",
    "half_interval",
    "like_these",
    "look_factor",
    "look_number",
    "mcnemar",
    "median_interval",
    "over_teachers",
    "over_these",
    "pooled_spread",
    "price",
    "profile",
    "rank_students",
    "students_to_share",
    "t_quantile",
    "teacher_spread",
    "time_ratio",
    "two_way",
    "wants_second_session",
    "with_search",
]
