"""How large each term's gradient is beside the cross-entropy's and the loss's, from curves that hold gradients."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from reports.pair import Pair
from reports.reading import Curve

CROSS_ENTROPY = "ce"
COLUMNS = ["method_id", "label", "term", "n", "epoch", "of_loss", "of_ce", "cosine"]


def shares(pair: Pair) -> pd.DataFrame:
    """One row for each method, term beside the cross-entropy, and epoch, in the order of the pair's methods; see `COLUMNS`.

    `of_loss` and `of_ce` are the norm of the term's gradient divided by the norm of the loss's and by that of the
    cross-entropy's, `cosine` is of its angle to the latter: each the mean over `n` seeds, and NaN where it is not known.
    Methods of a single term are left out: its share is 1.
    """
    found = []
    for method_id, label in pair.labels.items():
        curves = [
            pair.curves[cell] for cell in pair.runs.loc[pair.runs["method_id"].eq(method_id), "id"] if cell in pair.curves
        ]
        measured = [curve for curve in curves if "gradient" in curve.gradients]
        names = list(dict.fromkeys(name.removeprefix("gradient_") for each in measured for name in each.gradients))
        terms = [name for name in names if name != "gradient" and not name.startswith("cosine_")]
        for term in terms if len(terms) > 1 else ():
            if term != CROSS_ENTROPY:
                found.append(_of_term(term, measured).assign(method_id=method_id, label=label, term=term, n=len(measured)))
    return pd.concat(found, ignore_index=True)[COLUMNS] if found else pd.DataFrame(columns=COLUMNS)


def _of_term(term: str, curves: list[Curve]) -> pd.DataFrame:
    """The means over these curves, a row an epoch."""
    epochs = min(len(curve.top1) for curve in curves)
    unknown = np.full(epochs, np.nan)

    def column(curve: Curve, name: str) -> np.ndarray:
        return curve.gradients.get(name, unknown)[:epochs]

    def mean(values: list[np.ndarray]) -> np.ndarray:
        with warnings.catch_warnings():  # of an epoch in which nothing is known
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.nanmean([np.where(np.isfinite(each), each, np.nan) for each in values], axis=0)

    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = {
            which: mean([column(curve, f"gradient_{term}") / column(curve, whole) for curve in curves])
            for which, whole in (("of_loss", "gradient"), ("of_ce", f"gradient_{CROSS_ENTROPY}"))
        }
    cosine = mean([column(curve, f"cosine_{term}") for curve in curves])
    return pd.DataFrame({"epoch": np.arange(1, epochs + 1), **ratios, "cosine": cosine})
