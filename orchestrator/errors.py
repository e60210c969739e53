"""Every error that orch raises on purpose.

OrchError                     anything below; `exit_code` is what the command line ends with
├── UserError                 the user can mend it (exit code 2): one message, with the way out
│   ├── ConfigError           a file or an override is wrong; carries every problem at once
│   ├── UnknownNameError      a name that no registry has; carries the nearest right ones
│   ├── DataError             a data set is missing, unreadable or does not fit the file
│   ├── RunFolderError        a run folder is missing, taken, finished or of another digest
│   ├── WeightsError          a weights file does not fit the model
│   └── ResourceError         the machine or the cluster lacks what the file asks for
│       └── OutOfMemoryError  memory ran out while training or evaluating
└── WorkError                 the work itself failed (exit code 1)
    ├── CheckpointError       a checkpoint could not be written or read
    ├── NonFiniteLossError    the loss became NaN or infinite
    └── TrialError            a trial, student or other stage failed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class OrchError(Exception):
    """Base of every error that orch raises on purpose."""

    exit_code = 1


class UserError(OrchError):
    """Something the user can mend. The message states the rule, the values and the way out."""

    exit_code = 2


class UnknownNameError(UserError):
    """A name that no registry has.

    Args:
        kind: what was looked for, such as ``optimizer``.
        name: what was asked for.
        known: every name that would have been right.
    """

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(f"unknown {kind} {name!r}; {suggest(name, self.known)}")


class DataError(UserError):
    """A data set is missing, unreadable or does not fit the file."""


class RunFolderError(UserError):
    """A run folder is missing, taken by another process, finished, or of another digest."""


class WeightsError(UserError):
    """A weights file does not fit the model."""


class ResourceError(UserError):
    """The machine or the cluster lacks what the file asks for."""


class OutOfMemoryError(ResourceError):
    """Memory ran out while training or evaluating.

    Args:
        message: what did not fit, and the way out.
        step: how many optimizer steps were done.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message, step)  # both, so that it travels between processes
        self.message, self.step = message, step

    def __str__(self) -> str:
        return self.message


class WorkError(OrchError):
    """The work itself failed."""


class CheckpointError(WorkError):
    """A checkpoint could not be written or read."""


class NonFiniteLossError(WorkError):
    """The loss became NaN or infinite."""


class TrialError(WorkError):
    """A trial, a student or another stage of a pipeline failed."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a file: ``where`` is ``file:line`` and ``key`` the dotted path."""

    message: str
    key: str = ""
    where: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


class ConfigError(UserError):
    """A file or an override is wrong. ``problems`` holds everything that was found."""

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        found = [Problem(problems)] if isinstance(problems, str) else list(problems)
        self.problems = found
        super().__init__("\n".join(map(str, found)))


def suggest(name: object, known: Iterable[str]) -> str:
    """Names the right choices nearest to ``name``, or all of them when none is near."""
    choices, text = sorted(known), str(name)
    begun = [choice for choice in choices if len(text) > 2 and choice.startswith(text)][:3]
    near = begun or difflib.get_close_matches(text, choices, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(choice) for choice in near) + "?"
    shown = ", ".join(choices[:20]) + (", …" if len(choices) > 20 else "")
    return f"choose one of: {shown}" if choices else "there is none"
