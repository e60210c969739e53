"""Lengths of training as people write them: `3 epochs`, `500 steps`, `5%`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Unit = Literal["steps", "epochs", "%"]

_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(steps?|epochs?|%)\s*")


@dataclass(frozen=True)
class Interval:
    """What comes back every `length` optimizer steps, which need not be whole.

    The k-th point is the step nearest to k·length, so that rounding never adds up: every half
    epoch of 399 steps are the steps 200, 399, 598, 798, … and the end of each epoch is one.
    """

    length: float

    def __post_init__(self) -> None:
        if not self.length >= 1:
            raise ValueError(f"length >= 1 must hold, but got {self.length}")

    def point(self, number: int) -> int:
        """The step of a point, counted from 1."""
        return round(number * self.length)

    def meets(self, step: int) -> bool:
        """Whether a step, counted from 1, is one of the points."""
        # Points are half a step at most from k·length, so no other k can be the one.
        number = round(step / self.length)
        return number > 0 and self.point(number) == step


@dataclass(frozen=True)
class Duration:
    """A length of training: optimiser steps, epochs, or per cent of the whole run."""

    value: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Reads `3 epochs`, `0.5 epoch`, `500 steps` or `5%`.

        Raises:
            ValueError: naming the right forms.
        """
        match = _PATTERN.fullmatch(text)
        if not match:
            raise ValueError(
                f"{text!r} is not a duration; write it as '500 steps', '3 epochs' or '5%'"
            )
        value, word = float(match[1]), match[2]
        unit: Unit = "%" if word == "%" else "steps" if word.startswith("step") else "epochs"
        if unit == "steps" and value != int(value):
            raise ValueError(f"{text!r}: steps are whole; write '{round(value)} steps'")
        if unit == "%" and value > 100:
            raise ValueError(f"{text!r} is more than the whole run; at most '100%'")
        return cls(value, unit)

    def steps(self, steps_per_epoch: int, total: int | None = None) -> int:
        """Converts to optimiser steps, rounded to the nearest.

        Args:
            steps_per_epoch: optimiser steps in one epoch.
            total: optimiser steps of the whole run; needed for per cent.

        Raises:
            ValueError: for per cent without a total.
        """
        return round(self._exact(steps_per_epoch, total))

    def interval(self, steps_per_epoch: int, total: int | None = None) -> Interval:
        """The same as a length that comes back, at least one step; arguments as of `steps`."""
        return Interval(max(self._exact(steps_per_epoch, total), 1.0))

    def _exact(self, steps_per_epoch: int, total: int | None) -> float:
        if self.unit == "steps":
            return self.value
        if self.unit == "epochs":
            return self.value * steps_per_epoch
        if total is None:
            raise ValueError("a run's own length can't be given in per cent of itself")
        return self.value / 100 * total

    def __str__(self) -> str:
        if self.unit == "%":
            return f"{self.value:g}%"
        word = self.unit if self.value != 1 else self.unit[:-1]
        return f"{self.value:.12g} {word}"

    @classmethod
    def _validate(cls, value: Any) -> Duration:
        if isinstance(value, Duration):
            return value
        if not isinstance(value, str):
            raise PydanticCustomError(
                "duration",
                "{value} has no unit; write it as '500 steps', '3 epochs' or '5%'",
                {"value": repr(value)},
            )
        try:
            return cls.parse(value)
        except ValueError as error:
            raise PydanticCustomError("duration", "{why}", {"why": str(error)}) from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {
            "type": "string",
            "pattern": r"^\s*\d+(\.\d+)?([eE][+-]?\d+)?\s*(steps?|epochs?|%)\s*$",
            "examples": ["3 epochs", "500 steps", "5%"],
        }
