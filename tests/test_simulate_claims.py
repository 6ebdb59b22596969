"""Every kind of claim keeps its promise in a short run of the simulations, which also show what corrections are for."""

from __future__ import annotations

import math

from simulate_claims import simulate


def test_claims_keep_their_promises():
    draws = 400
    found = list(simulate(draws))
    assert [row for row, broken in found if broken] == []
    rows = {(row.claim, row.truth): row for row, _ in found}
    assert rows["looks at 3, 4, 5, 6, 7, 8, 9, 10, uncorrected", "shared"].error > 0.12
    assert rows["teachers: one, 10 seeds", "shared"].error > 0.3
    assert rows["these pairs, read as pairs like these", "students differ by 0.3"].error > 0.2
    assert rows["these pairs, 5 seeds", "shared"].power > 0.97  # where counting pairs shows 1.2 of 7
    slack = 3 * math.sqrt(0.05 * 0.95 / 100)
    assert all(row.coverage > 0.95 - slack for row, _ in found if row.promised and not math.isnan(row.coverage))
