"""The subcommand ``trivium search``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Optional

import typer

from trivium.cli._console import Output, OutputOption, ProgressBar, out, print_json


def search(
    to: Annotated[Path, typer.Option("--out", help="file of patterns, for the strategy minference")],
    text: Annotated[Optional[Path], typer.Option(help="a long text; default the demo's book")] = None,
    model_dir: Annotated[Optional[Path], typer.Option(help="a transformers model folder; default SmolLM2")] = None,
    length: Annotated[int, typer.Option(min=512, help="tokens of the text")] = 8192,
    gamma: Annotated[Optional[float], typer.Option(help="take the sparsest pattern that keeps so much; default the one within the budget that keeps most")] = None,
    budget: Annotated[float, typer.Option(min=0, max=1, help="without gamma: leave patterns of a higher density aside")] = 0.5,
    skip: Annotated[int, typer.Option(min=0, help="rows at the start that do not count")] = 2500,
    probe_rows: Annotated[int, typer.Option(min=2, help="random rows of each head to measure on")] = 256,
    dtype: Annotated[str, typer.Option(help="of the model")] = "float32",
    output: OutputOption = Output.text,
) -> None:
    """Find the pattern of each head of a model, offline, on the CPU."""
    from trivium.demo.download import smollm2
    from trivium.demo.model import load_model
    from trivium.demo.prompt import book
    from trivium.hf.search import search as find

    model, tokenizer = load_model(model_dir or smollm2(lambda _: None), dtype)
    ids = tokenizer(text.read_text() if text else book(), return_tensors="pt").input_ids[:, :length]
    with ProgressBar("layers", shown=output is Output.text) as bar:
        found = find(model, ids, gamma=gamma, budget=budget, skip=skip, probe_rows=probe_rows, progress=bar)
    found.save(to)
    kinds = Counter(f"{h.candidate.pattern} {h.candidate.first}, {h.candidate.second}" for h in found.heads)
    result = {
        "out": str(to), "tokens": ids.shape[1], "heads": len(found.heads), "coverage": found.coverage, "density": found.density,
        "reached": sum(h.reached for h in found.heads), "patterns": dict(kinds.most_common()),
    }  # fmt: skip
    if output is Output.json:
        print_json(result)
        return
    for name, count in kinds.most_common():
        out.print(f"{count:4d} heads  {name}", highlight=False)
    out.print(f"coverage {found.coverage:.3f} at density {found.density:.3f}; written to {to}", highlight=False, soft_wrap=True)
