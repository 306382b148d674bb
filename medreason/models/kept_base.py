"""The base of a process that trains one run after another: loaded once, and each run gets modules of its own around it.

What an adapter, Unsloth or a generation does to modules stays with those of its run; weights are shared, and frozen.
"""

import copy
import gc
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Loaded = TypeVar("Loaded")


class Kept:
    """What was loaded last, and by what."""

    wanted = False  # only where runs follow one another
    key: Hashable = None
    loaded: Any = None


def keep_bases() -> None:
    """Has this process keep what it loads, until it loads something else."""
    Kept.wanted = True


def is_kept() -> bool:
    """Whether an earlier run of this process has loaded a base."""
    return Kept.loaded is not None


def kept(key: Hashable, load: Callable[[], Loaded]) -> Loaded:
    """What `load` gives, or gave when it was called for the same key; called each time where nothing is kept."""
    if not Kept.wanted:
        return load()
    if Kept.loaded is None or Kept.key != key:
        import torch

        Kept.key = Kept.loaded = None  # two would not fit
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        Kept.loaded, Kept.key = load(), key
    loaded: Loaded = Kept.loaded
    return loaded


def own_modules(model: Any) -> Any:
    """A model of the same weights whose modules are its own, where bases are kept; else the model itself."""
    if not Kept.wanted:
        return model
    shared = [*model.parameters(), *model.buffers()]
    holders = (*model.parameters(), *model.modules())  # bitsandbytes' numbers beside a weight
    shared += [one.quant_state for one in holders if getattr(one, "quant_state", None) is not None]
    return copy.deepcopy(model, {id(one): one for one in shared})
