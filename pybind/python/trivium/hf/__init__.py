"""Trivium under transformers: any model that takes an attention function.

>>> import trivium.hf
>>> trivium.hf.register()
>>> AutoModelForCausalLM.from_pretrained(path, attn_implementation="trivium_flexprefill")
"""

from trivium.hf.cache import Cache
from trivium.hf.patching import patch
from trivium.hf.registry import register
from trivium.hf.tracing import Trace, trace

__all__ = ["Cache", "Trace", "patch", "register", "trace"]
