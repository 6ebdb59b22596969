"""The learning rate as a pure function of the position in the training: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from bench.records.recipe import Recipe

ONE_CYCLE_RISE = 0.3  # share of the training in which `one_cycle` rises from lr / 25 to lr, before it falls to lr / 10,000


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step of the main phase, counted from 0.

    `step` changes at epoch boundaries, `cosine` and `one_cycle` (both as cosines, to `min_lr` and about 0 at the end) and the
    warm-up at every step. Milestones are rounded to whole epochs, at least one epoch each.

    `timm_cosine` is timm's: it changes at epoch boundaries, warm-up included, which the cosine counts among its epochs.
    """
    steps = recipe.epochs * steps_per_epoch
    if recipe.schedule == "timm_cosine":
        epoch = step // steps_per_epoch
        if epoch < recipe.warmup_epochs:
            return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * epoch / recipe.warmup_epochs
        return _cosine(recipe.lr, recipe.min_lr, epoch / recipe.epochs)
    if recipe.schedule == "one_cycle":
        rise = max(1, round(ONE_CYCLE_RISE * steps))
        if step < rise:
            return _cosine(recipe.lr / 25, recipe.lr, step / rise)
        return _cosine(recipe.lr, recipe.lr / 1e4, (step - rise) / max(1, steps - rise))
    warmup = recipe.warmup_epochs * steps_per_epoch
    if step < warmup:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * (step + 1) / warmup
    if recipe.schedule == "cosine":
        return _cosine(recipe.lr, recipe.min_lr, (step - warmup) / max(1, steps - warmup))
    epoch = step // steps_per_epoch
    passed = sum(epoch >= max(1, round(milestone * recipe.epochs)) for milestone in recipe.milestones)
    return recipe.lr * recipe.gamma**passed


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
