"""The arms of the demo: one model, one prompt, several kinds of attention."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from trivium import hf
from trivium.demo.prompt import Prompt
from trivium.eval.arms import TORCH, Arm, attending
from trivium.hf.tracing import Trace

ANSWER_TOKENS = 8

ARMS = (
    Arm("torch SDPA, dense", TORCH),
    Arm("trivium dense", "dense"),
    Arm("flexprefill", {"strategy": "flexprefill", "gamma": 0.9, "min_budget": 512, "block_size": 128}),
    Arm(
        "flexprefill + string",
        {"strategy": "flexprefill", "gamma": 0.9, "min_budget": 512, "block_size": 128},
        "string",
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What one arm did. Times are wall-clock seconds of the prefill, less what measuring coverage took."""

    arm: str
    prefill_s: float
    attention_s: float
    density: float
    coverage: float | None
    nll: float  # of the continuation, natural log, per token
    perplexity: float
    answer: str
    answer_is_right: bool
    notes: tuple[str, ...]


def run_arm(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    arm: Arm,
    step: Callable[[], None],
    mask_layers: tuple[int, ...] = (),
    probe_rows: int = 0,
) -> tuple[Outcome, Trace]:
    """Prefill the prompt, then answer its question.

    Parameters
    ----------
    step : callable
        Called when a layer's prefill is done.
    mask_layers : tuple of int
        Layers whose kept blocks the trace remembers.
    probe_rows : int
        Random rows of each head on which coverage is measured.
    """
    with attending(model, arm), torch.inference_mode(), hf.trace(masks=mask_layers, probe_rows=probe_rows) as trace:
        with _each_layer(model, step):
            started = time.perf_counter()
            state, logits = _prefill(model, prompt)
            seconds = time.perf_counter() - started - trace.measuring
        attention = trace.seconds
        nll = _continuation_nll(logits, prompt)
        answer = _answer(model, tokenizer, state, logits, len(prompt.ids))
    outcome = Outcome(
        arm=arm.name,
        prefill_s=seconds,
        attention_s=attention,
        density=1.0 if trace.density is None else trace.density,
        coverage=trace.coverage,
        nll=nll,
        perplexity=math.exp(nll),
        answer=answer,
        answer_is_right=prompt.key in answer,
        notes=tuple(trace.notes),
    )
    return outcome, trace


@contextmanager
def _each_layer(model: Any, step: Callable[[], None]) -> Iterator[None]:
    """Call ``step`` after each decoder layer."""
    layers = model.get_decoder().layers
    hooks = [layer.register_forward_hook(lambda *_: step()) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _prefill(model: Any, prompt: Prompt) -> tuple[Any, torch.Tensor]:
    """The cache, and the logits [tokens from the continuation on, vocabulary]."""
    ids = torch.tensor([prompt.ids])
    keep = len(prompt.ids) - prompt.continuation[0] + 1
    result = model(input_ids=ids, use_cache=True, logits_to_keep=keep)
    return result.past_key_values, result.logits[0].float()


def _continuation_nll(logits: torch.Tensor, prompt: Prompt) -> float:
    """Mean negative log-likelihood of the continuation, natural log."""
    start, end = prompt.continuation
    want = torch.tensor(prompt.ids[start:end])
    return float(torch.nn.functional.cross_entropy(logits[: end - start], want))


def _answer(model: Any, tokenizer: Any, cache: Any, logits: torch.Tensor, length: int) -> str:
    """Greedy decoding after the question; ``length`` tokens are in the cache."""
    made: list[int] = []
    token = int(logits[-1].argmax())
    for i in range(ANSWER_TOKENS):
        made.append(token)
        position = torch.tensor([[length + i]])
        result = model(input_ids=torch.tensor([[token]]), past_key_values=cache, position_ids=position, use_cache=True)
        cache, token = result.past_key_values, int(result.logits[0, -1].argmax())
    return str(tokenizer.decode(made)).strip()
