"""A block that must raise an error of ours."""

from __future__ import annotations

from typing import Any, Self

__all__ = ["Refusal"]


class Refusal:
    """A block that must raise one of these errors; if it does not, the test says in what situation it must.

    :param situation: what the sink is in, or was asked for.
    """

    error: Any

    def __init__(self, situation: str, *expected: type[Exception]) -> None:
        self._situation = situation
        self._expected = expected

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        names = " or ".join(expected.__name__ for expected in self._expected)
        assert error is not None, f"{self._situation}, and nothing was raised: raise {names}"
        if isinstance(error, self._expected):
            self.error = error
            return True
        if isinstance(error, Exception) and not isinstance(error, AssertionError):
            raise AssertionError(f"{self._situation}: raise {names}, not {type(error).__name__} ({error})") from error
        return False
