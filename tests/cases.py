"""Cases of one test that share what it starts."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

Test = Callable[..., Awaitable[None]]


def each_of(names: str | Sequence[str], cases: Iterable[Any]) -> Callable[[Test], Test]:
    """As `pytest.mark.parametrize`, within one test: services are started once for all cases, which therefore must not
    disturb one another. The failure names the case."""
    several = not isinstance(names, str)

    def decorate(test: Test) -> Test:
        known = inspect.signature(test)
        own = names if several else (names,)

        @functools.wraps(test)
        async def run(**fixtures: Any) -> None:
            for case in cases:
                try:
                    await test(**fixtures, **dict(zip(own, case if several else (case,), strict=True)))
                except BaseException as error:
                    error.add_note(f"in the case {case!r}"[:2000])
                    raise

        kept = [parameter for name, parameter in known.parameters.items() if name not in own]
        run.__signature__ = known.replace(parameters=kept)  # type: ignore[attr-defined]
        return run

    return decorate
