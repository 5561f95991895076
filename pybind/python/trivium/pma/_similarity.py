"""How the checkpoints of a run lie to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trivium import _bridge
from trivium._engine import Engine, default_engine
from trivium.pma._series import Series, series, staged
from trivium.pma._trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """Inner products of checkpoints, layer by layer, and what follows from them.

    Attributes
    ----------
    layers : tuple of str
        "model.layers.3", or a tensor outside of the layers.
    products : array [layers, checkpoints, checkpoints]
        In float64.
    """

    checkpoints: tuple[str, ...]
    steps: tuple[int, ...]
    layers: tuple[str, ...]
    elements: tuple[int, ...]
    products: Matrix
    bytes_read: int
    seconds: float

    def gram(self, layer: str | None = None) -> Matrix:
        """Inner products of a layer, or of all weights."""
        return np.asarray(self.products.sum(0) if layer is None else self.products[self.layers.index(layer)])

    def cosine(self, layer: str | None = None, *, centred: bool = False) -> Matrix:
        """Pairwise cosines [checkpoints, checkpoints].

        Centred, they are of the differences from the mean checkpoint: the cheap proxy of the
        paper's second-order condition. The more negative off the diagonal, the more errors
        cancel in a merge.
        """
        g = self.gram(layer)
        if centred:
            g = g - g.mean(0, keepdims=True) - g.mean(1, keepdims=True) + g.mean()
        norm = np.sqrt(np.maximum(np.diag(g), np.finfo(np.float64).tiny))
        return np.asarray(g / np.outer(norm, norm))

    def distance(self, layer: str | None = None) -> Matrix:
        """Pairwise Euclidean distances [checkpoints, checkpoints]."""
        g = self.gram(layer)
        squares = np.diag(g)[:, None] + np.diag(g)[None, :] - 2 * g
        return np.asarray(np.sqrt(np.maximum(squares, 0)))

    def trajectory(self, layer: str | None = None) -> Trajectory:
        """Give the path of the run in the plane in which it is widest."""
        return Trajectory.from_gram(self.gram(layer), self.steps)

    def to_rows(self) -> list[dict[str, Any]]:
        """For each layer, cosine and distance of neighbours on the trajectory."""
        rows = []
        for layer in (None, *self.layers):
            cosine, distance = self.cosine(layer), self.distance(layer)
            for i in range(1, len(self.checkpoints)):
                rows.append({
                    "layer": layer or "all", "from": self.steps[i - 1], "to": self.steps[i],
                    "cosine": float(cosine[i - 1, i]), "distance": float(distance[i - 1, i]),
                })  # fmt: skip
        return rows

    def plot(self, ax: Axes | None = None, *, layer: str | None = None, centred: bool = True) -> Axes:
        """Draw the cosines as a heat map."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(5, 4))[1]
        picture = ax.imshow(self.cosine(layer, centred=centred), cmap="RdBu_r", vmin=-1 if centred else None, vmax=1)
        ax.figure.colorbar(picture, ax=ax, label="cosine of differences from the mean" if centred else "cosine")
        ax.set_xticks(range(len(self.steps)), [str(s) for s in self.steps], rotation=90)
        ax.set_yticks(range(len(self.steps)), [str(s) for s in self.steps])
        ax.set_title(layer or "all weights")
        return ax

    def _repr_html_(self) -> str:
        from trivium._html import table

        def matrix(title: str, m: Matrix) -> str:
            return f"<p>{title}</p>" + table(("", *map(str, self.steps)), [(s, *map(float, row)) for s, row in zip(self.steps, m)])

        return matrix("Cosine of all weights", self.cosine()) + matrix("Cosine of differences from the mean", self.cosine(centred=True))


def similarity(
    sources: Series | str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    pattern: str | None = None,
    model_key: str | None = None,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
    cache_dir: str | PathLike[str] | None = None,
    engine: Engine | None = None,
) -> Similarity:
    """Compare checkpoints pairwise, layer by layer, in one pass over the files.

    Parameters
    ----------
    model_key, cache_dir
        As for :func:`trivium.merge`. Sources may be URLs.
    """
    found = sources if isinstance(sources, Series) else series(*([sources] if isinstance(sources, (str, PathLike)) else sources), pattern=pattern)
    found = staged(found, cache_dir, progress)
    request = {"engine": (engine or default_engine()).handle, "sources": [fspath(p) for p in found.paths],
               "model_key": model_key or "", "threads": threads}  # fmt: skip
    result = _bridge.run("similarity", request, None, progress=progress)
    n = len(found)
    layers = result["layers"]
    return Similarity(
        tuple(found.paths), tuple(found.steps), tuple(x["name"] for x in layers), tuple(x["elements"] for x in layers),
        np.array([x["products"] for x in layers], dtype=np.float64).reshape(len(layers), n, n),
        result["bytes_read"], result["seconds"],
    )  # fmt: skip
