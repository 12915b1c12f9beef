"""A frozen value of components and numbers as plain JSON, and back; and classes from files that are no modules."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from stockpot.types import StockpotError


def to_json(value: Any) -> Any:
    """A config as plain JSON; each component carries the name of its class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": f"{kind.__module__}:{kind.__qualname__}", **fields}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(value: Any) -> Any:
    """The inverse of `to_json`. Fields that this version does not know are refused, not dropped."""
    if isinstance(value, dict) and "class" in value:
        place, _, name = value["class"].rpartition(":")
        try:
            kind = getattr(load_file(place) if place.endswith(".py") else importlib.import_module(place), name)
            return kind(**{key: from_json(item) for key, item in value.items() if key != "class"})
        except (ImportError, AttributeError, TypeError) as error:
            raise StockpotError(
                f"config.json names {value['class']}, which this version cannot make: {error}."
            ) from error
    return tuple(from_json(item) for item in value) if isinstance(value, list) else value


def load_file(name: str) -> ModuleType:
    """A recipe file as a module named by its path: so `to_json` says where to find a class that it defines."""
    path = Path(name).resolve()
    if not path.is_file():
        raise StockpotError(f"there is no recipe file {name}: check its path.")
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[str(path)] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except StockpotError:
        raise
    except Exception as error:
        raise StockpotError(
            f"the recipe {name} does not run: {type(error).__name__}: {error}; mend the file."
        ) from error
    return module
