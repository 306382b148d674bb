"""Values of JSON and YAML records that may be missing, cut or altered by hand: reading one never raises."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def read_mapping(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON or YAML file's content and an empty string; or an empty mapping and what is wrong with the file."""
    try:
        text = path.read_text(encoding="utf-8")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was compiled
        content = yaml.load(text, Loader=loader) if path.suffix == ".yaml" else json.loads(text)
    except FileNotFoundError:
        return {}, f"no {path.name}"
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        return {}, f"{path.name} cannot be read ({type(error).__name__})"
    return (content, "") if isinstance(content, dict) else ({}, f"{path.name} holds no settings")


def finite(value: object) -> float | None:
    """The number that a value is or spells; None for anything else, NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def look_up(config: Mapping[str, Any], key: str) -> Any:
    """The value at `lora.r`; None where there is none, or a whole group."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return None if isinstance(node, Mapping) else node


def mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
