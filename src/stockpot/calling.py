"""Calling functions that others wrote, with what they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Of what TRL passes beside the columns, that which the function takes; not all are written for all of it."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables hide it
        return {}
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in offered.items() if takes_all or name in parameters}
