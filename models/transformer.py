"""Transformers for text: the encoder alone (BERT-like), and the decoder alone (GPT-like).

Devlin et al., "BERT", 2019: blocks with the norm behind each residual sum, GELU, learned positions,
and the first token's features through `pooler` for the whole text. The first token must be a
beginning-of-text token, which is BERT's [CLS]; BERT's token types are left out, for there is one
text. Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), 2019: the norm
in front of each branch, and one behind the last block.

Axes: N batch, T tokens, D features.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .layers.positions import RotaryPositions
from .layers.text_block import Block, build_positions, check_sizes
from .registry import register
from .sequence import PAD, SequenceModel, TiedHead, last_real
from .stages import Stage

Pair = tuple[torch.Tensor, torch.Tensor]


def _initialise(model: nn.Module) -> None:
    """BERT's and GPT-2's: matrices and embeddings from N(0, 0.02²), biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class Encoder(SequenceModel):
    """BERT-like: every token sees the whole text.

    Args:
        num_classes: length of the logits.
        vocabulary: how many tokens there are.
        length: most tokens of a text.
        per_token: can't be: the network sees ahead.
        dim: features of a token.
        depth: blocks.
        heads: of the attention; they divide `dim`.
        hidden: features between a block's linear layers; None for 4 `dim`.
        dropout: rate behind the embedding, in the blocks, and before the head.
        positions: `learned`, `sinusoidal` or `rotary`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        vocabulary: int,
        length: int | tuple[int, ...],
        per_token: bool = False,
        dim: int = 128,
        depth: int = 2,
        heads: int = 4,
        hidden: int | None = None,
        dropout: float = 0.1,
        positions: str = "learned",
    ) -> None:
        super().__init__(num_classes, vocabulary, length, per_token, sees_ahead=True)
        hidden = 4 * dim if hidden is None else hidden
        check_sizes(dim, depth, heads, hidden, dropout)
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = build_positions(positions, dim, self.length)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        rotary = RotaryPositions() if positions == "rotary" else None
        kind = {"norm_first": False, "activation": "gelu", "eps": 1e-12, "rotary": rotary}
        self.layers = nn.ModuleList(
            Block(dim, heads, hidden, dropout, **kind)  # type: ignore[arg-type]
            for _ in range(depth)
        )
        self.pooler = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, num_classes)
        _initialise(self)

    def init_head(self, layer: nn.Module) -> None:
        """As the other linear layers."""
        _initialise(layer)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``layers.0`` …, ``pool`` and ``head``."""
        blocks = [
            Stage(f"layers.{number}", partial(self._block, block), (block,))
            for number, block in enumerate(self.layers)
        ]
        stem = Stage("stem", self._stem, (self.tokens, self.positions, self.norm))
        pool = Stage("pool", self._pool, (self.pooler,))
        return [stem, *blocks, pool, Stage("head", self._classify, (self.head,))]

    def _stem(self, tokens_NT: torch.Tensor) -> Pair:
        x_NTD = self.norm(self.positions(self.tokens(tokens_NT)))
        return self.dropout(x_NTD), tokens_NT

    def _block(self, block: nn.Module, state: Pair) -> Pair:
        x_NTD, tokens_NT = state
        return block(x_NTD, mask_NTS=(tokens_NT != PAD)[:, None]), tokens_NT

    def _pool(self, state: Pair) -> torch.Tensor:
        return torch.tanh(self.pooler(state[0][:, 0]))

    def _classify(self, x_ND: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(x_ND))  # type: ignore[no-any-return]


class Decoder(TiedHead, SequenceModel):
    """GPT-like: no token sees a later one. The last token's features stand for a whole text.

    Args:
        num_classes: length of the logits.
        vocabulary: how many tokens there are.
        length: most tokens of a text.
        per_token: logits for each token, not for the whole text.
        dim: features of a token.
        depth: blocks.
        heads: of the attention; they divide `dim`.
        hidden: features between a block's linear layers; None for 4 `dim`.
        dropout: rate behind the embedding and in the blocks.
        positions: `learned`, `sinusoidal` or `rotary`.
        tied: the head is the embedding's matrix (Press and Wolf, 2017), as GPT-2's; only where the
            answers are tokens.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        vocabulary: int,
        length: int | tuple[int, ...],
        per_token: bool = False,
        dim: int = 128,
        depth: int = 2,
        heads: int = 4,
        hidden: int | None = None,
        dropout: float = 0.1,
        positions: str = "learned",
        tied: bool = False,
    ) -> None:
        super().__init__(num_classes, vocabulary, length, per_token)
        hidden = 4 * dim if hidden is None else hidden
        check_sizes(dim, depth, heads, hidden, dropout)
        self.tie(tied, per_token)
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = build_positions(positions, dim, self.length)
        self.dropout = nn.Dropout(dropout)
        rotary = RotaryPositions() if positions == "rotary" else None
        kind = {"norm_first": True, "activation": "gelu_tanh", "rotary": rotary}
        self.layers = nn.ModuleList(
            Block(dim, heads, hidden, dropout, **kind)  # type: ignore[arg-type]
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Identity() if tied else nn.Linear(dim, num_classes, bias=False)
        _initialise(self)
        # Residual sums grow with their branches, so these start smaller (GPT-2, section 2.3).
        for block in self.layers:
            for branch in (block.self_attn.out_proj, block.linear2):  # type: ignore[union-attr]
                nn.init.normal_(branch.weight, std=0.02 / math.sqrt(2 * depth))  # type: ignore[union-attr,arg-type]

    def init_head(self, layer: nn.Module) -> None:
        """As the other linear layers."""
        _initialise(layer)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``layers.0`` …, ``pool`` and ``head``; a tied head owns nothing."""
        blocks = [
            Stage(f"layers.{number}", partial(self._block, block), (block,))
            for number, block in enumerate(self.layers)
        ]
        stem = Stage("stem", self._stem, (self.tokens, self.positions))
        pool = Stage("pool", self._pool, (self.norm,))
        return [stem, *blocks, pool, Stage("head", self._classify, (self.head,))]

    def _stem(self, tokens_NT: torch.Tensor) -> Pair:
        return self.dropout(self.positions(self.tokens(tokens_NT))), tokens_NT

    def _block(self, block: nn.Module, state: Pair) -> Pair:
        # Padding stands behind the text, where causal attention does not look.
        return block(state[0], causal=True), state[1]

    def _pool(self, state: Pair) -> torch.Tensor:
        x_NTD, tokens_NT = state
        return self.norm(x_NTD if self.per_token else last_real(x_NTD, tokens_NT))  # type: ignore[no-any-return]

    def _classify(self, x_NTD: torch.Tensor) -> torch.Tensor:
        return F.linear(x_NTD, self.tokens.weight) if self.tied else self.head(x_NTD)


register("transformer_encoder", Encoder)
register("transformer_decoder", Decoder)
