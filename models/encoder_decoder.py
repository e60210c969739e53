"""The transformer: an encoder reads a text, a decoder writes the answer.

Vaswani et al., "Attention Is All You Need", 2017.

Axes: N batch, T tokens of the target text, S tokens of the source text, D features.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from .base import StagedModel, at_least
from .layers.text_block import Block, build_positions, check_sizes
from .registry import register
from .sequence import PAD, TiedHead
from .stages import Stage, run_stages

Pair = tuple[torch.Tensor, torch.Tensor]
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Transformer(TiedHead, StagedModel):
    """Encoder and decoder: answers a text with a text, given the answer's beginning.

    Both texts share one vocabulary and one embedding, scaled by √D (section 3.4 of the paper). A
    norm follows each stack, as in torch's `nn.Transformer`.

    Args:
        num_classes: length of the logits.
        vocabulary: how many tokens there are.
        length: most tokens of the source and of the target text.
        per_token: must be true: each token of the target has an answer.
        dim: features of a token.
        depth: blocks of the encoder, and of the decoder.
        heads: of the attention; they divide `dim`.
        hidden: features between a block's linear layers; None for 4 `dim`.
        dropout: rate behind the embedding and in the blocks.
        positions: `sinusoidal` or `learned`.
        norm_first: norms in front of the branches, which learns without a warm-up (Xiong et al.,
            2020).
        tied: the head is the embedding's matrix, as in the paper.
    """

    head_name = "head"
    stem_name: ClassVar[str | None] = None

    def __init__(
        self,
        *,
        num_classes: int,
        vocabulary: int,
        length: int | tuple[int, ...],
        per_token: bool = True,
        dim: int = 128,
        depth: int = 2,
        heads: int = 4,
        hidden: int | None = None,
        dropout: float = 0.1,
        positions: str = "sinusoidal",
        norm_first: bool = False,
        tied: bool = True,
    ) -> None:
        super().__init__(num_classes)
        self.vocabulary = at_least("vocabulary", vocabulary, 2, "tokens of the data")
        if not (isinstance(length, tuple | list) and len(length) == 2 and per_token):
            raise ValueError(
                "transformer answers a text with a text, so the data must have both, but it has "
                f"sequences of length {length}; take transformer_encoder or transformer_decoder"
            )
        self.length = (int(length[0]), int(length[1]))
        hidden = 4 * dim if hidden is None else hidden
        check_sizes(dim, depth, heads, hidden, dropout)
        self.dim = dim
        self.tie(tied, per_token)
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = build_positions(positions, dim, max(self.length))
        self.dropout = nn.Dropout(dropout)
        make = partial(Block, dim, heads, hidden, dropout, norm_first=norm_first, activation="relu")
        self.encoder = nn.ModuleList(make() for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(dim)
        self.decoder = nn.ModuleList(make(cross=True) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(dim)
        self.head = nn.Identity() if tied else nn.Linear(dim, num_classes, bias=False)
        nn.init.normal_(self.tokens.weight, std=dim**-0.5)
        for name, matrix in self.named_parameters():
            if matrix.ndim == 2 and not name.startswith(("tokens", "positions")):
                nn.init.xavier_uniform_(matrix)
            elif name.endswith("bias"):
                nn.init.zeros_(matrix)

    def init_head(self, layer: nn.Module) -> None:
        """As the other matrices."""
        assert isinstance(layer, nn.Linear)
        nn.init.xavier_uniform_(layer.weight)

    def forward(  # type: ignore[override]
        self, tokens: torch.Tensor, target_tokens: torch.Tensor
    ) -> torch.Tensor:
        """Tokens of the source [N, S] and of the target so far [N, T] to logits [N, T, classes]."""
        state = (tokens, target_tokens)
        return run_stages(self.stages(), state, recompute=self._checkpointing)  # type: ignore[no-any-return]

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``encoder.0`` …, ``memory``, ``decoder.0`` …, ``pool`` and ``head``."""
        encoder = [
            Stage(f"encoder.{number}", partial(self._encode, block), (block,))
            for number, block in enumerate(self.encoder)
        ]
        decoder = [
            Stage(f"decoder.{number}", partial(self._decode, block), (block,))
            for number, block in enumerate(self.decoder)
        ]
        shared = tuple(self.tokens.parameters()) if self.tied else ()
        return [
            Stage("stem", self._stem, (self.tokens, self.positions)),
            *encoder,
            Stage("memory", self._memory, (self.encoder_norm,)),
            *decoder,
            Stage("pool", self._pool, (self.decoder_norm,)),
            Stage("head", self._classify, (self.head,), shared=shared),
        ]

    def _stem(self, state: Pair) -> Triple:
        tokens_NS, target_NT = state
        return self._embed(tokens_NS), self._embed(target_NT), tokens_NS

    def _embed(self, tokens_NT: torch.Tensor) -> torch.Tensor:
        x_NTD = self.positions(self.tokens(tokens_NT) * math.sqrt(self.dim))
        return self.dropout(x_NTD)  # type: ignore[no-any-return]

    def _encode(self, block: nn.Module, state: Triple) -> Triple:
        source_NSD, x_NTD, tokens_NS = state
        return block(source_NSD, mask_NTS=(tokens_NS != PAD)[:, None]), x_NTD, tokens_NS

    def _memory(self, state: Triple) -> Triple:
        return self.encoder_norm(state[0]), state[1], state[2]

    def _decode(self, block: nn.Module, state: Triple) -> Triple:
        source_NSD, x_NTD, tokens_NS = state
        real_N1S = (tokens_NS != PAD)[:, None]
        # The target's padding stands behind it, where causal attention does not look.
        return source_NSD, block(x_NTD, source_NSD, causal=True, mask_NTS=real_N1S), tokens_NS

    def _pool(self, state: Triple) -> torch.Tensor:
        return self.decoder_norm(state[1])  # type: ignore[no-any-return]

    def _classify(self, x_NTD: torch.Tensor) -> torch.Tensor:
        return F.linear(x_NTD, self.tokens.weight) if self.tied else self.head(x_NTD)


register("transformer", Transformer)
