"""What the metrics mean, and when a difference counts."""

from __future__ import annotations

from dataclasses import dataclass

from trivium.eval.bootstrap import Interval

FEWEST = 5  # samples; with fewer an interval says nothing


@dataclass(frozen=True)
class Metric:
    """How a metric is shown."""

    short: str
    long: str
    lower_is_better: bool = False


METRICS = {
    "exact": Metric("exact", "share of prompts of which every token of the answer is the most likely one"),
    "score": Metric("score", "share of the answers that the generated text holds"),
    "nll": Metric("NLL", "negative log-likelihood of the scored tokens, natural log, mean", lower_is_better=True),
    "agreement": Metric("agree", "share of positions with the baseline's most likely next token"),
    "kl": Metric("KL", "divergence of the next token's distribution from the baseline's, natural log", lower_is_better=True),
}


def verdict(metric: str, difference: Interval) -> str:
    """``better`` or ``worse`` where the interval leaves zero out, else nothing."""
    if difference.samples < FEWEST or difference.low <= 0 <= difference.high:
        return ""
    return "better" if (difference.mean < 0) == METRICS[metric].lower_is_better else "worse"
