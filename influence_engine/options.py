"""Optional keyword arguments that several functions share, checked when they are given.

A function with many options takes them as ``**options: Unpack[SomeOptions]``, where ``SomeOptions`` is a ``TypedDict``
that documents each of them: type checkers know every name, and ``with_defaults`` refuses an unknown one when it runs.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

Options = TypeVar("Options", bound=Mapping[str, Any])


def with_defaults(
    function: Callable[..., Any],
    defaults: Options,
    given: Mapping[str, Any],
    *,
    renamed: Mapping[str, str] | None = None,
) -> Options:
    """The options that a function was given, and the defaults of all others.

    Args:
        function: Whose ``**options`` they are; named in messages.
        defaults: The default of every option, by its name.
        given: What the function was called with.
        renamed: By an option's former name its present one; the former one is accepted with a ``DeprecationWarning``.

    Raises:
        TypeError: an option is unknown, in the words that Python has for it, or it is given under both of its names;
            the message lists the known ones.
    """
    chosen = dict(given)
    for former, present in (renamed or {}).items():
        if former not in chosen:
            continue
        if present in chosen:
            raise TypeError(f"{function.__name__}() got both {present!r} and {former!r}, its former name")
        warnings.warn(f"the argument {former!r} is now called {present!r}", DeprecationWarning, stacklevel=3)
        chosen[present] = chosen.pop(former)
    unknown = [name for name in chosen if name not in defaults]
    if unknown:
        named = [
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        raise TypeError(
            f"{function.__name__}() got an unexpected keyword argument {unknown[0]!r}; it knows "
            f"{', '.join([*named, *defaults])}"
        )
    return cast("Options", {**defaults, **chosen})
