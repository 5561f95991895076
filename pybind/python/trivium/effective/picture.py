"""Heat maps of retrieval by depth and length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trivium.effective.study import Study

COLUMNS = 4


def heat_maps(study: Study) -> Figure:
    """One map for each arm, all on one scale; the line is the trained length."""
    from matplotlib import pyplot

    arms, lengths = study.arms, study.lengths
    columns = min(COLUMNS, len(arms))
    rows = -(-len(arms) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(2.6 * columns + 1, 2.3 * rows), layout="constrained", squeeze=False)
    image = None
    for ax, arm in zip(axes.flat, arms):
        grid = np.array([study.row(arm, length).depths for length in lengths]).T
        image = ax.imshow(grid, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        for (depth, length), value in np.ndenumerate(grid):
            if not np.isnan(value):
                ax.text(length, depth, f"{value:.2f}", ha="center", va="center", fontsize=6, color="white" if value < 0.5 else "black")
        within = sum(length <= study.train_length for length in lengths)
        if within < len(lengths):
            ax.axvline(within - 0.5, color="#E69F00", linewidth=1)
        ax.set_title(arm, fontsize=8)
        ax.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=6)
        edges = len(grid)
        ax.set_yticks(range(edges), [f"{(i + 0.5) / edges:.1f}" for i in range(edges)], fontsize=6)
    for ax in axes.flat[len(arms) :]:
        ax.axis("off")
    figure.supxlabel("tokens", fontsize=8)
    figure.supylabel("depth of the needle", fontsize=8)
    figure.suptitle(f"{study.model}: retrieved, {study.task}, {study.samples} samples a length", fontsize=9)
    if image is not None:
        figure.colorbar(image, ax=axes, label="retrieved", shrink=0.8)
    return figure
