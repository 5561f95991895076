"""The released FlexPrefill (github.com/bytedance/FlexPrefill, Apache-2.0) from a checkout, for timing beside ours.

Only its file of operators is loaded, as it is: it needs torch, triton, einops and transformers. Without flash_attn its own
Triton kernel stands in for it, which it calls for prompts of at most min_budget tokens only.
"""
import importlib.util
import os
import warnings

OPERATORS = os.path.join("flex_prefill", "ops", "flex_prefill_attention.py")


def load(checkout):
    """flex_prefill_attention(q, k, v, gamma, tau, ...) over [batch, n, heads, head_dim], from a checkout."""
    spec = importlib.util.spec_from_file_location("released_flex_prefill", os.path.join(checkout, OPERATORS))
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module.flex_prefill_attention
