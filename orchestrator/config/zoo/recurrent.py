"""Recurrent networks for text."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Rate
from orchestrator.config.numbers import Positive


class _Recurrent(Model):
    """What recurrent networks have."""

    takes: ClassVar[str] = "tokens"

    embedding: Positive = 128
    """Features of a token."""
    hidden: Positive = 256
    """Features of the state, of each direction."""
    layers: Positive = 1
    dropout: Rate = 0.0
    """Before the first layer and behind each; one mask for all time steps."""
    recurrent_dropout: Rate = 0.0
    """On the state between time steps, one mask for all (Gal and Ghahramani, 2016); slower."""
    zoneout: Rate = 0.0
    """How often a unit of the state stays as it was (Krueger et al., 2017); slower."""


@part("model", "rnn", "lstm", "gru", build=BUILD)
class Recurrent(_Recurrent):
    """Elman's network (1990), LSTM (Hochreiter, Schmidhuber, 1997), GRU (Cho et al., 2014)."""

    type: Literal["rnn", "lstm", "gru"]
    bidirectional: bool = False
    """Read backwards too; not where the next token is asked for."""
    pool: Literal["last", "mean", "max", "attention"] = "last"
    """What stands for the whole text: the last state of each direction, or that over time."""
    zoneout_cell: Rate = 0.0
    """As `zoneout`, of an LSTM's cell; the paper's language models have 0.5 here, 0.05 there."""

    @model_validator(mode="after")
    def _only_an_lstm_has_a_cell(self) -> Self:
        if self.zoneout_cell and self.type != "lstm":
            raise ValueError(
                f"zoneout_cell is of an LSTM's cell, which {self.type} does not have, but got "
                f"{self.zoneout_cell}; set zoneout instead, or take lstm"
            )
        return self


@part("model", "bigru_attention", build=BUILD)
class BiGruAttention(_Recurrent):
    """A bidirectional GRU whose states attention averages (Yang et al., 2016)."""

    type: Literal["bigru_attention"] = "bigru_attention"
    hidden: Positive = 128
