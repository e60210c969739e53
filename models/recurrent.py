"""Recurrent networks: Elman's, LSTM, GRU, and a bidirectional GRU with attention.

Elman, "Finding Structure in Time", 1990; Hochreiter and Schmidhuber, "Long Short-Term Memory",
1997, with the forget gate of Gers et al., 2000; Cho et al., "Learning Phrase Representations using
RNN Encoder-Decoder", 2014, with the reset gate behind the matrix product, as cuDNN has it. Names,
shapes and the fresh weights' spread are those of torch's `RNN`, `LSTM` and `GRU`, a layer each.

Dropout follows Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent
Neural Networks", 2016: one mask for all time steps, on what enters and leaves a layer (`dropout`)
and on the state between steps (`recurrent_dropout`). The latter leaves torch's fused kernels
behind in training, so it is slower. Zoneout (Krueger et al., "Zoneout", 2017) keeps units of the
state as they were; it works in evaluation too, by its expectation, so it is slower in both.

Axes: N batch, T time (tokens), D features, H features of the state, G features of all gates.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .base import at_least, check_rates
from .layers.alignment import AttentionPool
from .layers.dropouts import VariationalDropout, Zoneout, time_mask
from .registry import register
from .sequence import PAD, SequenceModel, count_real, last_real, take
from .stages import Stage

State = tuple[torch.Tensor, torch.Tensor]
"""The hidden state [N, H], and the LSTM's cell [N, H]; the others leave the cell as it was."""


def _rnn_step(x_NG: torch.Tensor, h_NG: torch.Tensor, state: State) -> State:
    return torch.tanh(x_NG + h_NG), state[1]


def _lstm_step(x_NG: torch.Tensor, h_NG: torch.Tensor, state: State) -> State:
    take_in, forget, candidate, give = (x_NG + h_NG).chunk(4, -1)
    cell = forget.sigmoid() * state[1] + take_in.sigmoid() * candidate.tanh()
    return give.sigmoid() * cell.tanh(), cell


def _gru_step(x_NG: torch.Tensor, h_NG: torch.Tensor, state: State) -> State:
    (x_reset, x_update, x_new), (h_reset, h_update, h_new) = x_NG.chunk(3, -1), h_NG.chunk(3, -1)
    update = (x_update + h_update).sigmoid()
    new = torch.tanh(x_new + (x_reset + h_reset).sigmoid() * h_new)
    return new + update * (state[0] - new), state[1]


_STEPS: dict[str, tuple[int, Callable[[torch.Tensor, torch.Tensor, State], State]]] = {
    "rnn": (1, _rnn_step),
    "lstm": (4, _lstm_step),
    "gru": (3, _gru_step),
}
"""How many gates a cell has, and its step from the input's and the state's share of them."""


class RecurrentLayer(nn.Module):
    """One layer over a whole sequence, in one direction or both.

    Args:
        cell: `rnn`, `lstm` or `gru`.
        inputs: features of what enters.
        hidden: features of the state, H.
        bidirectional: read backwards too, from each sequence's last real token, and put both
            states side by side.
        recurrent_dropout: rate at which the state is dropped before it enters the next step.
        zoneout: rates at which a unit of the hidden state, and of the LSTM's cell, stays.
    """

    def __init__(
        self,
        cell: str,
        inputs: int,
        hidden: int,
        bidirectional: bool,
        recurrent_dropout: float,
        zoneout: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        self.cell, self.hidden, self.recurrent_dropout = cell, hidden, recurrent_dropout
        self.zoneout, self.zoneout_cell = (Zoneout(rate) for rate in zoneout)
        self.suffixes = ("_l0", "_l0_reverse") if bidirectional else ("_l0",)
        gates = _STEPS[cell][0] * hidden
        for suffix in self.suffixes:
            shapes = {
                "weight_ih": (gates, inputs),
                "weight_hh": (gates, hidden),
                "bias_ih": (gates,),
                "bias_hh": (gates,),
            }
            for name, shape in shapes.items():
                parameter = nn.Parameter(torch.empty(shape))
                nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)
                self.register_parameter(name + suffix, parameter)

    def forward(self, x_NTD: torch.Tensor, tokens_NT: torch.Tensor) -> torch.Tensor:
        """Features to states, [N, T, H] or, of both directions, [N, T, 2H].

        Args:
            x_NTD: features of the tokens.
            tokens_NT: the tokens, for their padding.
        """
        states_NTH = self._read(x_NTD, "_l0")
        if len(self.suffixes) == 1:
            return states_NTH
        backwards_NT = reversal(tokens_NT)
        back_NTH = self._read(take(x_NTD, backwards_NT), "_l0_reverse")
        return torch.cat([states_NTH, take(back_NTH, backwards_NT)], -1)

    def _read(self, x_NTD: torch.Tensor, suffix: str) -> torch.Tensor:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [getattr(self, name + suffix) for name in names]
        dropped = self.training and self.recurrent_dropout > 0
        if dropped or self.zoneout.rate or self.zoneout_cell.rate:
            return self._step_by_step(x_NTD, *weights)
        h_1NH = x_NTD.new_zeros(1, x_NTD.shape[0], self.hidden)
        # Weights, biases in use, layers, dropout between them, training, bidirectional, batch first
        rest = (weights, True, 1, 0.0, self.training, False, True)
        if self.cell == "lstm":
            return torch.lstm(x_NTD, (h_1NH, h_1NH), *rest)[0]
        read = torch.gru if self.cell == "gru" else torch.rnn_tanh
        return read(x_NTD, h_1NH, *rest)[0]

    def _step_by_step(
        self,
        x_NTD: torch.Tensor,
        weight_ih: torch.Tensor,
        weight_hh: torch.Tensor,
        bias_ih: torch.Tensor,
        bias_hh: torch.Tensor,
    ) -> torch.Tensor:
        step = _STEPS[self.cell][1]
        gates_NTG = F.linear(x_NTD, weight_ih, bias_ih)
        start_NH = gates_NTG.new_zeros(x_NTD.shape[0], self.hidden)
        kept_NH = torch.ones_like(start_NH)
        if self.training and self.recurrent_dropout:
            kept_NH = time_mask(start_NH[:, None], self.recurrent_dropout)[:, 0]
        state, states = (start_NH, start_NH), []
        for x_NG in gates_NTG.unbind(1):
            hidden, cell = step(x_NG, F.linear(state[0] * kept_NH, weight_hh, bias_hh), state)
            state = self.zoneout(hidden, state[0]), self.zoneout_cell(cell, state[1])
            states.append(state[0])
        return torch.stack(states, 1)


def reversal(tokens_NT: torch.Tensor) -> torch.Tensor:
    """int64[N, T]: the places of the real tokens backwards; padding stays where it is."""
    place_T = torch.arange(tokens_NT.shape[1], device=tokens_NT.device)
    back_NT = count_real(tokens_NT)[:, None] - 1 - place_T
    return torch.where(back_NT >= 0, back_NT, place_T)


class Recurrent(SequenceModel):
    """The network: embedding, layers, a pool over time, and the linear layer `head`.

    Args:
        cell: `rnn`, `lstm` or `gru`.
        num_classes: length of the logits.
        vocabulary: how many tokens there are.
        length: tokens of a sequence.
        per_token: logits for each token, not for the whole sequence.
        embedding: features of a token.
        hidden: features of the state, of each direction.
        layers: how many.
        bidirectional: read backwards too.
        dropout: rate before the first layer and behind each.
        recurrent_dropout: rate between time steps.
        zoneout: rate at which a unit of the hidden state stays as it was.
        zoneout_cell: likewise of the cell, which only an LSTM has.
        pool: what stands for the whole sequence: the `last` state of each direction, or the
            `mean` or `max` over time, or their average by a learned weight (`attention`).
    """

    def __init__(
        self,
        cell: str,
        *,
        num_classes: int,
        vocabulary: int,
        length: int | tuple[int, ...],
        per_token: bool = False,
        embedding: int = 128,
        hidden: int = 256,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        zoneout_cell: float = 0.0,
        pool: str = "last",
    ) -> None:
        super().__init__(num_classes, vocabulary, length, per_token, sees_ahead=bidirectional)
        check_rates(dropout=dropout, recurrent_dropout=recurrent_dropout)
        check_rates(zoneout=zoneout, zoneout_cell=zoneout_cell)
        if zoneout_cell and cell != "lstm":
            raise ValueError(
                f"zoneout_cell is of an LSTM's cell, which a {cell} does not have, but got "
                f"{zoneout_cell}; set zoneout instead, or take lstm"
            )
        for name, value in (("embedding", embedding), ("hidden", hidden), ("layers", layers)):
            at_least(name, value, 1, "a size of the network")
        if pool not in ("last", "mean", "max", "attention"):
            raise ValueError(f"pool must be last, mean, max or attention, but got {pool!r}")
        self.pool, self.bidirectional = pool, bidirectional
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=PAD)
        self.dropout = VariationalDropout(dropout)
        outputs = hidden * (2 if bidirectional else 1)
        inputs = [embedding, *[outputs] * (layers - 1)]
        self.layers = nn.ModuleList(
            RecurrentLayer(
                cell, entry, hidden, bidirectional, recurrent_dropout, (zoneout, zoneout_cell)
            )
            for entry in inputs
        )
        self.attention = AttentionPool(outputs) if pool == "attention" else nn.Identity()
        self.head = nn.Linear(outputs, num_classes)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``layers.0`` …, ``pool`` and ``head``."""
        layers = [
            Stage(f"layers.{number}", partial(self._layer, layer), (layer,))
            for number, layer in enumerate(self.layers)
        ]
        stem = Stage("stem", self._stem, (self.embedding,))
        pool = Stage("pool", self._pool, (self.attention,))
        return [stem, *layers, pool, Stage("head", self.head, (self.head,))]

    def _stem(self, tokens_NT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.dropout(self.embedding(tokens_NT)), tokens_NT

    def _layer(
        self, layer: nn.Module, state: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x_NTD, tokens_NT = state
        return self.dropout(layer(x_NTD, tokens_NT)), tokens_NT

    def _pool(self, state: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x_NTD, tokens_NT = state
        if self.per_token:
            return x_NTD
        if self.pool == "attention":
            return self.attention(x_NTD, tokens_NT != PAD)  # type: ignore[no-any-return]
        if self.pool == "last":
            last_ND = last_real(x_NTD, tokens_NT)
            if not self.bidirectional:
                return last_ND
            half = x_NTD.shape[2] // 2  # backwards, the last state is that of the first token
            return torch.cat([last_ND[:, :half], x_NTD[:, 0, half:]], 1)
        real_NT1 = (tokens_NT != PAD)[:, :, None]
        if self.pool == "max":
            lowest = torch.finfo(x_NTD.dtype).min
            return x_NTD.masked_fill(~real_NT1, lowest).amax(1)
        return (x_NTD * real_NT1).sum(1) / real_NT1.sum(1).clamp(min=1)


class BiGruAttention(Recurrent):
    """A bidirectional GRU whose states attention pools, as for words in Yang et al., 2016.

    Args:
        num_classes: length of the logits.
        vocabulary: how many tokens there are.
        length: tokens of a sequence.
        per_token: can't be: the network sees ahead.
        embedding, hidden, layers, dropout, recurrent_dropout, zoneout: as in `Recurrent`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        vocabulary: int,
        length: int | tuple[int, ...],
        per_token: bool = False,
        embedding: int = 128,
        hidden: int = 128,
        layers: int = 1,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
    ) -> None:
        super().__init__(
            "gru",
            num_classes=num_classes,
            vocabulary=vocabulary,
            length=length,
            per_token=per_token,
            embedding=embedding,
            hidden=hidden,
            layers=layers,
            bidirectional=True,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            pool="attention",
        )


for _cell in _STEPS:
    register(_cell, partial(Recurrent, _cell))
register("bigru_attention", BiGruAttention)
