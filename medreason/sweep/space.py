"""Hydra's sweep syntax <-> Optuna's distributions.

choice(8, 16, 32)               one of these             range(1, 9, step=2)     whole numbers or floats in steps
interval(0.0, 0.1)              any float between        tag(int, interval(4, 64))   any whole number between
tag(log, interval(1e-5, 1e-3))  the same, in logarithms  lora.r=8                no search: every trial's
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, QuotedString, RangeSweep

from medreason.config import ConfigError, TrainConfig
from medreason.core.overrides import as_meant, spelled

LISTS_AS_CHOICES = "Choices for a categorical distribution should be"  # Optuna warns of lists, and keeps them well

if TYPE_CHECKING:  # Optuna's import takes a second that a mistaken command need not wait for
    from optuna.distributions import BaseDistribution


def read_space(params: Mapping[str, Any], arguments: Sequence[str]) -> "tuple[dict[str, BaseDistribution], list[str]]":
    """What is searched, by setting, and the overrides that every trial shares.

    An argument of the command line takes the place of the sweep's own entry, be it another range or a single value.
    Raises ConfigError for what cannot be searched.
    """
    parser = OverridesParser.create()
    # a file's texts are in Hydra's syntax, as on the command line; null, lists and numbers are YAML's own
    words = [f"{key}={value if isinstance(value, str) else spelled(value)}" for key, value in params.items()]
    entries = parser.parse_overrides([as_meant(word, TrainConfig) for word in words])
    entries += parser.parse_overrides(list(arguments))
    last = {entry.get_key_element(): entry for entry in entries}
    space = {name: distribution(name, entry) for name, entry in last.items() if entry.is_sweep_override()}
    return space, [str(entry.input_line) for entry in last.values() if not entry.is_sweep_override()]


def distribution(name: str, entry: Override) -> "BaseDistribution":
    """Optuna's form of one entry. Raises ConfigError for an empty or unknown one."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = entry.value()
    try:
        if isinstance(sweep, ChoiceSweep):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=LISTS_AS_CHOICES)
                return CategoricalDistribution([bare(item) for item in sweep.list])
        assert isinstance(sweep, RangeSweep | IntervalSweep), "glob() is for groups; use choice()"
        log, whole = "log" in sweep.tags, "int" in sweep.tags
        if isinstance(sweep, IntervalSweep):
            assert sweep.start is not None and sweep.end is not None, "an interval needs both its ends"
            if whole:
                return IntDistribution(int(sweep.start), int(sweep.end), log=log)
            return FloatDistribution(float(sweep.start), float(sweep.end), log=log)
        values = list(sweep.range())
        assert values, "the range is empty"
        if all(isinstance(value, int) for value in values):
            return IntDistribution(values[0], values[-1], step=abs(int(sweep.step)), log=log)
        return FloatDistribution(float(values[0]), float(values[-1]), step=abs(float(sweep.step)))
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"{name}: cannot search {entry.input_line}: {error}") from error


def shown(value: Any) -> str:
    """A trial's value as people are told it: a text as it is, anything else as Hydra spells it."""
    return value if isinstance(value, str) else spelled(value)


def bare(item: Any) -> Any:
    """A parsed value without Hydra's marks of where it was quoted."""
    if isinstance(item, QuotedString):
        return item.text
    if isinstance(item, list):
        return [bare(one) for one in item]
    return {str(bare(key)): bare(one) for key, one in item.items()} if isinstance(item, dict) else item


def size(space: "Mapping[str, BaseDistribution]") -> float:
    """How many different trials there are; infinite with any float."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    count = 1.0
    for one in space.values():
        if isinstance(one, CategoricalDistribution):
            count *= len(one.choices)
        elif isinstance(one, IntDistribution):
            count *= (one.high - one.low) // one.step + 1
        else:
            return float("inf")
    return count
