"""What models of texts and other sequences of tokens share.

Tokens are whole numbers below `vocabulary`; 0 is padding, which stands only behind the last real
token of a sequence.

Axes: N batch, T tokens, D features.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from .base import StagedModel, at_least

PAD = 0


class SequenceModel(StagedModel):
    """A network that reads sequences of tokens.

    Its logits are [N, classes], or [N, T, classes] where each token has an answer of its own.

    Args:
        num_classes: length of the logits.
        vocabulary: how many tokens there are, padding included.
        length: most tokens of a sequence; a tuple of one number means the same.
        per_token: give logits for each token.
        sees_ahead: whether a token's features know later tokens, so that it can't be asked for
            the next one.

    Raises:
        ValueError: for numbers out of range, or `per_token` of a network that sees ahead.
    """

    head_name = "head"
    stem_name: ClassVar[str | None] = None

    def __init__(
        self,
        num_classes: int,
        vocabulary: int,
        length: int | tuple[int, ...],
        per_token: bool,
        *,
        sees_ahead: bool = False,
    ) -> None:
        super().__init__(num_classes)
        self.vocabulary = at_least("vocabulary", vocabulary, 2, "tokens of the data")
        self.length = one_length(length)
        if per_token and sees_ahead:
            raise ValueError(
                "each token is asked for the next one, which a network that reads in both "
                "directions sees; set bidirectional: false where there is such an option, or take "
                "a causal network: rnn, lstm, gru, tcn or transformer_decoder"
            )
        self.per_token = per_token


class TiedHead(StagedModel):
    """A network whose head may be the embedding's matrix (Press and Wolf, 2017).

    Then it has no head of its own: the embedding belongs to the stem alone, and a file of weights
    holds it once.

    Attributes:
        tied: whether it is.
        vocabulary: how many tokens there are.
    """

    tied: bool
    vocabulary: int

    def tie(self, tied: bool, per_token: bool) -> None:
        """Notes whether the head is the embedding.

        Raises:
            ValueError: if it is, but the answers are not the tokens.
        """
        if tied and not (per_token and self.num_classes == self.vocabulary):
            raise ValueError(
                "a tied head is the embedding's matrix, so the answers must be tokens, but there "
                f"are {self.num_classes} classes and {self.vocabulary} tokens; set tied: false"
            )
        self.tied = tied

    @property
    def head_names(self) -> tuple[str, ...]:
        """The head; none where the embedding is the head."""
        return () if self.tied else super().head_names

    def reset_head(self, num_classes: int) -> None:
        """See `StagedModel.reset_head`.

        Raises:
            ValueError: if the embedding is the head.
        """
        if self.tied:
            raise ValueError("a tied head is the embedding, so it can't be replaced; untie it")
        super().reset_head(num_classes)


def one_length(length: int | tuple[int, ...]) -> int:
    """The length of the one sequence that a network reads.

    Raises:
        ValueError: for several, or one below 1.
    """
    if isinstance(length, tuple | list):
        if len(length) != 1:
            raise ValueError(
                f"the network reads one sequence, but the data has {len(length)}, of lengths "
                f"{tuple(length)}; take the model transformer, which answers a text with a text"
            )
        (length,) = length
    return at_least("length", length, 1, "tokens of a sequence")


def count_real(tokens_NT: torch.Tensor) -> torch.Tensor:
    """int64[N]: how many tokens of each sequence are no padding."""
    return (tokens_NT != PAD).sum(1)


def take(x_NTD: torch.Tensor, places_NT: torch.Tensor) -> torch.Tensor:
    """The features at some places of each sequence, in their order."""
    return x_NTD.gather(1, places_NT[:, :, None].expand(-1, -1, x_NTD.shape[2]))


def last_real(x_NTD: torch.Tensor, tokens_NT: torch.Tensor) -> torch.Tensor:
    """[N, D]: the features at each sequence's last real token."""
    last_N = (count_real(tokens_NT) - 1).clamp(min=0)
    return take(x_NTD, last_N[:, None])[:, 0]
