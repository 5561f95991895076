"""The path of a run through the space of its weights, seen from where it is widest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Trajectory:
    """Checkpoints in the plane of the two directions in which they differ most.

    Attributes
    ----------
    steps : tuple of int
    points : float64 [checkpoints, 2]
        Distances in the plane are distances of weights, as far as the plane shows them.
    shown : float
        Share of the squared distances from the mean that lies in the plane.
    """

    steps: tuple[int, ...]
    points: npt.NDArray[np.float64]
    shown: float

    @staticmethod
    def from_gram(gram: npt.NDArray[np.float64], steps: tuple[int, ...]) -> Trajectory:
        """Find the plane from inner products [checkpoints, checkpoints]."""
        centred = gram - gram.mean(0, keepdims=True) - gram.mean(1, keepdims=True) + gram.mean()
        values, vectors = np.linalg.eigh(centred)
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        points = np.zeros((len(steps), 2))
        points[:, : len(steps)] = (vectors[:, :2] * np.sqrt(values[:2]))[:, : len(steps)]
        points *= np.where(points[-1] < points[0], -1, 1)  # time runs to the right and upwards
        total = float(values.sum())
        return Trajectory(steps, points, float(values[:2].sum()) / total if total else 1.0)

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Where the equal-weights merge of all of them lies: float64 [2]."""
        return np.asarray(self.points.mean(axis=0))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the path, from light to dark, and the merge of all of it."""
        from trivium.viz import plot_trajectory

        return plot_trajectory(self, ax=ax)

    def to_rows(self) -> list[dict[str, Any]]:
        """A plain row for each checkpoint."""
        return [{"step": step, "x": float(x), "y": float(y)} for step, (x, y) in zip(self.steps, self.points)]

    def _repr_html_(self) -> str:
        from trivium._html import table

        rows = [(row["step"], row["x"], row["y"]) for row in self.to_rows()]
        return f"<p>{len(rows)} checkpoints, {self.shown:.0%} of their spread in this plane</p>" + table(("step", "x", "y"), rows)
