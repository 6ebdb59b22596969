"""A figure of where networks look: images in rows, networks in columns, their maps laid over the images. No torch."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reports.figures import letters

CELL_INCHES = 1.7
OPACITY = 0.5  # of a map over its image


def draw(images: np.ndarray, classes: Sequence[str], networks: Sequence[tuple[str, Sequence[str], np.ndarray]]) -> bytes:
    """The figure as PNG.

    Args:
        images: (N, H, W, 3) in [0, 1].
        classes: the N labels.
        networks: of each its title, the class that it names for every image, and its maps (N, H, W) in [0, 1].
    """
    columns = 1 + len(networks)
    figure = Figure(figsize=(CELL_INCHES * columns * 1.15, 0.4 + CELL_INCHES * 1.15 * len(images)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(images), columns, squeeze=False)
    for row, image in enumerate(images):
        grid[row, 0].imshow(image)
        grid[row, 0].set_ylabel(classes[row], fontsize=8, parse_math=False)
        for axes, (_, predicted, maps) in zip(grid[row, 1:], networks, strict=True):
            axes.imshow(image)
            axes.imshow(maps[row], cmap="inferno", alpha=OPACITY, vmin=0, vmax=1)
            color = "black" if predicted[row] == classes[row] else "tab:red"
            axes.set_xlabel(f"predicts {predicted[row]}", fontsize=8, color=color, parse_math=False)
    for axes, title in zip(grid[0], ["image", *(title for title, _, _ in networks)], strict=True):
        axes.set_title(title, fontsize=8, wrap=True, parse_math=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    picture = io.BytesIO()
    with letters.unwarned():
        letters.make_visible(figure)
        figure.draw_without_rendering()
        letters.replace(figure, letters.find_font(figure, letters.lacking(figure)))
        figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()
