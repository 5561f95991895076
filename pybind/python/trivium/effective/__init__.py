"""How long a context does a model use, and which positions make it longer?

Retrieval by depth and length under each position strategy, on the same prompts; and a
search for STRING's S and W, which is saved beside the model and used from then on.

>>> study = trivium.effective.measure("model-folder", lengths=[512, 1024, 1536])  # doctest: +SKIP
>>> study.rows, study.plot()                                                      # doctest: +SKIP
"""

from trivium.effective.arms import default_arms
from trivium.effective.search import Choice, choose
from trivium.effective.study import Row, Study, measure
from trivium.effective.subject import Target, open_target

__all__ = ["Choice", "Row", "Study", "Target", "choose", "default_arms", "measure", "open_target"]
