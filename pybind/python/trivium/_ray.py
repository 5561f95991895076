"""A merge as tasks on a Ray cluster, one for each shard of the output."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from trivium import _bridge
from trivium._errors import PluginCrashed, TriviumError, Unsupported

# How often a shard is tried again when its worker, or the plugin below it, dies.
RETRIES = 8


def merge_on_ray(
    request: dict[str, Any],
    address: str,
    timeout: float | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Begin a merge here, fill its shards on the cluster, make it visible here.

    A task writes the bytes of its shard in place and is the same whenever and wherever it
    runs, so it may be lost and done again.
    """
    try:
        import ray
    except ModuleNotFoundError as missing:
        raise Unsupported("merging on Ray needs ray", hint="pip install 'trivium[ray]'") from missing
    started = time.monotonic()
    request = {**request, "sources": [os.path.abspath(s) for s in request["sources"]], "out": os.path.abspath(request["out"]),
               "base": request["base"] and os.path.abspath(request["base"])}  # fmt: skip
    begun = _bridge.run("merge.begin", request, timeout)
    parts: list[dict[str, Any]] = []
    if begun["shards"]:
        ours = not ray.is_initialized()
        if ours:
            ray.init(address=address or None, include_dashboard=None if address else False, log_to_driver=False)
        try:
            parts = _fill(ray, request, begun, progress)
        finally:
            if ours:
                ray.shutdown()
    result: dict[str, Any] = _bridge.run("merge.finish", {**request, "recipe": begun["recipe"], "parts": parts}, timeout)
    result["seconds"] = time.monotonic() - started
    return result


def _fill(ray: Any, request: dict[str, Any], begun: dict[str, Any], progress: Callable[[int, int], None] | None) -> list[dict[str, Any]]:
    task = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=[PluginCrashed])(part)
    sizes = {task.remote(request, begun["recipe"], shard["name"]): shard["bytes"] for shard in begun["shards"]}
    waiting, parts, done = list(sizes), [], begun["bytes"] - sum(sizes.values())
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=0.1)
            for reference in ready:
                result = ray.get(reference)
                if isinstance(result, TriviumError):
                    raise result
                parts.append(result)
                done += sizes[reference]
                if progress is not None:
                    progress(done, begun["bytes"])
    except BaseException:
        for reference in waiting:
            ray.cancel(reference, force=True)
        raise
    return parts


def part(request: dict[str, Any], recipe: str, shard: str) -> dict[str, Any] | TriviumError:
    """Fill one shard, in a worker of the cluster.

    Returns
    -------
    dict or TriviumError
        What was done, or why it cannot be: an error that another try would not mend.
    """
    from trivium._engine import default_engine

    here = {**request, "engine": default_engine().handle, "threads": request["threads"] or 1, "recipe": recipe, "shard": shard}
    try:
        result: dict[str, Any] = _bridge.run("merge.part", here, None)
    except PluginCrashed:
        raise
    except TriviumError as error:
        return error
    return result
