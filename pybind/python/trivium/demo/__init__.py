"""The main job: three arts on a real model, a table and a page, within minutes.

Sparse attention (FlexPrefill) and repaired positions (STRING) prefill a book
that hides a pass key, beside dense attention by torch and by Trivium; then the
last checkpoints of a real training run are merged.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trivium.demo.arms import Outcome
    from trivium.demo.checkpoints import MergeOutcome

PROBE_ROWS = 64  # of each head, to measure coverage
SHARE_OF_LAYERS = (0.1, 0.4, 0.7, 1.0)  # where the pictured layers lie


@dataclass(frozen=True)
class Result:
    """Everything the demo found, as the page and ``results.json`` show it."""

    model: str
    dtype: str
    length: int
    key: str
    key_at: int
    gamma: float
    arms: tuple[Outcome, ...]
    merge: MergeOutcome
    environment: dict[str, Any]
    notes: tuple[str, ...]
    seconds: float
    page: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values only."""
        return asdict(self)


def run(
    out: str | PathLike[str] = "demo-report",
    *,
    length: int | None = None,
    fast: bool = False,
    model_dir: str | PathLike[str] | None = None,
    quiet: bool = False,
) -> Result:
    """Run the demo and write its report.

    Parameters
    ----------
    out : path
        Folder of ``index.html`` and ``results.json``.
    length : int, optional
        Tokens of the window; default 8,192, or 4,096 without AMX and AVX-512.
    fast : bool
        1,024 tokens and few documents, to see that everything works.
    model_dir : path, optional
        A Hugging Face folder of a Llama-like model instead of SmolLM2-135M.
    quiet : bool
        No progress bar and no table.
    """
    from trivium._errors import Unsupported

    try:
        import matplotlib  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError as missing:
        raise Unsupported(f"the demo needs {missing.name}", hint="pip install 'trivium[demo]'") from None

    from trivium.demo.progress import Bar

    with Bar(shown=not quiet) as bar:
        result = _run(Path(out), length, fast, model_dir, bar)
    if not quiet:
        from trivium.demo.console import show

        show(result)
    return result


def _run(out: Path, length: int | None, fast: bool, model_dir: Any, bar: Any) -> Result:
    from trivium.demo import machine
    from trivium.demo.arms import ARMS, run_arm
    from trivium.demo.checkpoints import batches, run_merge
    from trivium.demo.download import smollm2
    from trivium.demo.model import load_model
    from trivium.demo.page import write_page
    from trivium.demo.prompt import CONTINUATION, book, make_prompt

    started = time.perf_counter()
    length = length or (machine.FAST if fast else machine.default_length())
    with bar.stage("model"):
        folder = Path(model_dir) if model_dir is not None else smollm2(bar.say)
        bar.say("loading the model")
        model, tokenizer = load_model(folder, machine.default_dtype())
        bar.say("reading the book")
        text = tokenizer.encode(book(), add_special_tokens=False)
    prompt = make_prompt(tokenizer, text, length, continuation=min(CONTINUATION, length // 4))
    layers = model.config.num_hidden_layers
    pictured = tuple(sorted({round(share * (layers - 1)) for share in SHARE_OF_LAYERS}))
    outcomes, drawn = [], None
    for arm in ARMS:
        with bar.stage(arm.name, total=layers):
            outcome, trace = run_arm(model, tokenizer, prompt, arm, bar.step, pictured, PROBE_ROWS)
        outcomes.append(outcome)
        if drawn is None and trace.masks:
            drawn = trace
    documents = 64 if fast else 512
    with bar.stage("merging checkpoints", total=3 * batches(documents)):
        merged = run_merge(documents, bar.step)
    gamma = next(arm.attention["gamma"] for arm in ARMS if isinstance(arm.attention, dict))
    result = Result(
        model=folder.name,
        dtype=machine.default_dtype(),
        length=len(prompt.ids),
        key=prompt.key,
        key_at=prompt.key_at,
        gamma=gamma,
        arms=tuple(outcomes),
        merge=merged,
        environment=machine.environment(),
        notes=tuple(dict.fromkeys(note for outcome in outcomes for note in outcome.notes)),
        seconds=time.perf_counter() - started,
        page=str(out / "index.html"),
    )
    with bar.stage("writing the report"):
        write_page(result, drawn if drawn is not None else trace, out)
    return result
