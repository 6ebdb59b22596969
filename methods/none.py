"""The baseline: cross-entropy alone."""

from methods.base import METHODS, Card, Method


@METHODS.register_module("none")
class NoDistillation(Method):
    """Cross-entropy with the labels, and nothing beside it: the baseline of every gain."""

    card = Card(title="No distillation", formula="CE", paper="–")
