"""Merging the checkpoints of a pre-training run (PMA, arXiv 2505.12082) as a workflow.

Find the run's checkpoints (:func:`series`), see how they lie to each other
(:func:`similarity`), try many merges in one pass (:func:`sweep`), keep a rolling merge
while training goes on (:func:`watch`), start from a merge (:func:`init`), or get back on
the road after a loss spike (:func:`recover`).
"""

from __future__ import annotations

from trivium.pma._losses import Losses
from trivium.pma._restart import init, recover
from trivium.pma._series import Checkpoint, Series, series
from trivium.pma._similarity import Similarity, similarity
from trivium.pma._sweep import Candidate, Sweep, sweep
from trivium.pma._trajectory import Trajectory
from trivium.pma._watch import Rolling, watch

__all__ = [
    "Candidate", "Checkpoint", "Losses", "Rolling", "Series", "Similarity", "Sweep", "Trajectory",
    "init", "recover", "series", "similarity", "sweep", "watch",
]  # fmt: skip
