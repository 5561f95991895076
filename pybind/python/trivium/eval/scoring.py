"""Score a model on a sample: one prefill, and decoding where an answer is generated."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from trivium._errors import InvalidArgument
from trivium.eval.decoding import Started, decode, found_share
from trivium.eval.tasks.sample import Sample

CHUNK = 128  # rows whose logits are widened to float32 at a time


@dataclass(frozen=True)
class Measured:
    """What one arm did with one sample.

    Attributes
    ----------
    scores : dict
        By metric: ``exact`` (every scored token is the most likely one), ``nll`` (mean over
        scored tokens, natural log), ``score`` (share of answers found in the text generated),
        ``agreement`` (share of positions with the baseline's most likely token) and ``kl``
        (mean Kullback-Leibler divergence of this from the baseline, natural log).
    curves : dict
        ``nll`` in each part of the window, for samples of kind ``rows``.
    ttft_s : float
        Wall clock of the prefill, up to the first new token.
    answer : str
        The text generated.
    """

    scores: dict[str, float]
    ttft_s: float
    curves: dict[str, list[float]] = field(default_factory=dict)
    answer: str = ""


def measure(model: Any, sample: Sample) -> dict[str, float]:
    """Score the last tokens of a sample with one forward pass.

    Returns
    -------
    dict
        ``nll``, the mean over scored tokens, natural log; and ``exact``, 1 when
        each of them is the most likely token given those before, else 0
        (for answers; of text only the likelihood counts).
    """
    return score(model, sample).scores


@torch.inference_mode()
def score(model: Any, sample: Sample, *, tokenizer: Any = None, baseline: torch.Tensor | None = None) -> Measured:
    """Score a sample of any kind.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        Reads the text generated; for samples of kind ``generate``.
    baseline : Tensor [rows, vocabulary], optional
        The baseline's logits, for samples of kind ``compare``; None: this is the baseline.
    """
    if sample.kind in ("answer", "text"):
        return _scored_end(model, sample)
    if sample.kind == "rows":
        return _scored_rows(model, sample)
    if sample.kind == "compare":
        return _compared(model, sample, baseline)
    if sample.kind == "generate":
        return _generated(model, sample, tokenizer)
    raise InvalidArgument(f"sample: kind {sample.kind!r}: want answer, text, rows, compare or generate")


@torch.inference_mode()
def row_logits(model: Any, sample: Sample) -> tuple[torch.Tensor, float]:
    """The logits [rows, vocabulary] at the positions of a sample, and seconds."""
    keep = torch.tensor(sample.rows, device=model.device)
    result, seconds = _timed(model, sample.ids, logits_to_keep=keep, use_cache=False)
    return result.logits[0], seconds


@torch.inference_mode()
def start(model: Any, sample: Sample) -> Started:
    """Prefill the prompt of a sample of kind ``generate``."""
    result, seconds = _timed(model, sample.ids, logits_to_keep=1, use_cache=True)
    return Started(result.logits[:, -1:].argmax(dim=-1), result.past_key_values, seconds)


def answered(text: str, sample: Sample, seconds: float) -> Measured:
    """The score of a generated text."""
    return Measured({"score": found_share(text, sample)}, seconds, answer=text)


def _scored_end(model: Any, sample: Sample) -> Measured:
    result, seconds = _timed(model, sample.ids, logits_to_keep=sample.scored + 1, use_cache=False)
    want = torch.tensor(sample.ids[-sample.scored :], device=model.device)
    nll, right = _likelihood(result.logits[0, :-1], want)
    exact = {"exact": float(right.all())} if sample.kind == "answer" else {}
    return Measured({**exact, "nll": float(nll.mean())}, seconds)


def _scored_rows(model: Any, sample: Sample) -> Measured:
    logits, seconds = row_logits(model, sample)
    nll, _ = _likelihood(logits, _next_tokens(model, sample))
    curve = [float(part.mean()) for part in nll.reshape(sample.bins, -1)]
    return Measured({"nll": float(nll.mean())}, seconds, {"nll": curve})


def _compared(model: Any, sample: Sample, baseline: torch.Tensor | None) -> Measured:
    logits, seconds = row_logits(model, sample)
    of = logits if baseline is None else baseline
    same, divergence = [], []
    for here, there in zip(logits.split(CHUNK), of.split(CHUNK)):
        here, there = here.float().log_softmax(dim=-1), there.float().log_softmax(dim=-1)
        same.append(here.argmax(dim=-1) == there.argmax(dim=-1))
        divergence.append((there.exp() * (there - here)).sum(dim=-1))
    nll, _ = _likelihood(logits, _next_tokens(model, sample))
    scores = {"agreement": torch.cat(same).float().mean(), "kl": torch.cat(divergence).mean(), "nll": nll.mean()}
    return Measured({metric: float(value) for metric, value in scores.items()}, seconds)


def _generated(model: Any, sample: Sample, tokenizer: Any) -> Measured:
    if tokenizer is None:
        raise InvalidArgument("sample of kind generate: want the tokenizer that reads the answer")
    begun = start(model, sample)
    (text,) = decode(model, tokenizer, sample, [begun], sample.new_tokens)
    return answered(text, sample, begun.seconds)


def _likelihood(logits: torch.Tensor, want: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row: negative log-likelihood, and whether the wanted token is the most likely one."""
    nll, right = [], []
    for part, target in zip(logits.split(CHUNK), want.split(CHUNK)):
        nll.append(torch.nn.functional.cross_entropy(part.float(), target, reduction="none"))
        right.append(part.argmax(dim=-1) == target)
    return torch.cat(nll), torch.cat(right)


def _next_tokens(model: Any, sample: Sample) -> torch.Tensor:
    """The tokens after the rows of a sample; the last token has none and is never among them."""
    return torch.tensor([sample.ids[row + 1] for row in sample.rows], device=model.device)


def _timed(model: Any, ids: list[int], **kwargs: Any) -> tuple[Any, float]:
    """A forward pass, and its wall-clock seconds, the device's work included."""
    tokens = torch.tensor([ids], device=model.device)
    _settle(model)
    started = time.perf_counter()
    result = model(input_ids=tokens, **kwargs)
    _settle(model)
    return result, time.perf_counter() - started


def _settle(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
