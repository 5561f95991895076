"""The model ``trivium`` of lm-evaluation-harness: its tasks, under any attention and position strategy.

    python -m trivium.eval.harness run --model trivium --tasks longbench_qasper --device cpu \\
        --model_args pretrained=FOLDER,attention=flexprefill,gamma=0.9,position=string

The module takes the harness's own arguments. In a program, importing it registers the model:

>>> import lm_eval, trivium.eval.harness
>>> lm_eval.simple_evaluate(model="trivium", model_args={"pretrained": folder, "attention": "probe"}, tasks=[..])

Needs ``pip install "trivium[harness]"``. Tasks that download their data need a network, or the data in
the cache of ``datasets``.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import trivium
from trivium._errors import Unsupported
from trivium.hf.patching import patch

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError as missing:
    raise Unsupported(f"the adapter needs {missing.name}", hint="pip install 'trivium[harness]'") from None


@register_model("trivium")
class TriviumLM(HFLM):  # type: ignore[misc]
    """The harness's own transformers model, with attention through Trivium.

    Parameters
    ----------
    pretrained, **kwargs
        As the harness's ``hf`` takes them.
    attention : str
        An attention strategy; its parameters are arguments beside it, such as ``gamma=0.9``.
    position : str, optional
        A position strategy; its parameters too.
    """

    def __init__(self, pretrained: Any, attention: str = "flexprefill", position: str | None = None, **kwargs: Any) -> None:
        chosen = {"strategy": attention, **_own("attention", attention, kwargs)}
        where = None if position is None else {"strategy": position, **_own("position", position, kwargs)}
        super().__init__(pretrained, **kwargs)
        self._patched = ExitStack()
        self._patched.enter_context(patch(self.model, attention=chosen, position=where))

    def close(self) -> None:
        """Give the model its own attention back."""
        self._patched.close()


def _own(kind: str, strategy: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take a strategy's parameters out of the arguments."""
    names = [parameter.name for parameter in trivium.info(f"{kind}.{strategy}").parameters]
    return {name: kwargs.pop(name) for name in names if name in kwargs}


def main() -> None:
    """Run the harness's own command line with the model ``trivium`` registered."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
