"""Decoders of text, as GPT-2: no token sees a later one.

Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), 2019: the norm in
front of each branch, and one behind the last block; GELU by its approximation with tanh. Weights in
the layout of the library transformers load through `Decoder.tensor_map`; they ask for the
vocabulary that they were trained with.

Axes: N batch, T tokens, D features.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .layers.text_attention import AttentionStyle, check_reach
from .layers.text_block import Block, build_positions, check_sizes, cut_positions, init_matrices
from .registry import Published, register
from .sequence import SequenceModel, TiedHead, last_real
from .stages import Stage

Pair = tuple[torch.Tensor, torch.Tensor]


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
        positions: `learned`, `sinusoidal`, or, with full attention, `rotary` or `relative`.
        attention: `full`, `local`, `sparse` or `linear`; see `layers/text_attention.py`.
        window: tokens: how far one sees if `local`, how many are a block if `sparse`.
        tied: the head is the embedding's matrix (Press and Wolf, 2017), as GPT-2's; only where the
            answers are tokens. None is wherever they are.
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
        attention: str = "full",
        window: int = 32,
        tied: bool | None = False,
    ) -> None:
        super().__init__(num_classes, vocabulary, length, per_token)
        hidden = 4 * dim if hidden is None else hidden
        check_sizes(dim, depth, heads, hidden, dropout)
        tied = per_token and num_classes == vocabulary if tied is None else tied
        self.tie(tied, per_token)
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = build_positions(positions, dim, self.length)
        self.dropout = nn.Dropout(dropout)
        style = AttentionStyle(attention, window, positions, self.length, causal=True)
        if not per_token:
            check_reach(style, depth)
        make = partial(Block, norm_first=True, activation="gelu_tanh", attention=style)
        self.layers = nn.ModuleList(
            make(dim, heads, hidden, dropout, inner_dropout=False) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Identity() if tied else nn.Linear(dim, num_classes, bias=False)
        init_matrices(self)
        # Residual sums grow with their branches, so these start smaller (GPT-2, section 2.3).
        for block in self.layers:
            for branch in (block.self_attn.out_proj, block.linear2):  # type: ignore[union-attr]
                nn.init.normal_(branch.weight, std=0.02 / math.sqrt(2 * depth))  # type: ignore[union-attr,arg-type]

    def init_head(self, layer: nn.Module) -> None:
        """As the other linear layers."""
        init_matrices(layer)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``layers.0`` …, ``pool`` and ``head``; a tied head owns nothing."""
        blocks = [
            Stage(f"layers.{number}", partial(self._block, block), (block,))
            for number, block in enumerate(self.layers)
        ]
        stem = Stage("stem", self._stem, (self.tokens, self.positions))
        pool = Stage("pool", self._pool, (self.norm,))
        shared = tuple(self.tokens.parameters()) if self.tied else ()
        head = Stage("head", self._classify, (self.head,), shared=shared)
        return [stem, *blocks, pool, head]

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

    def tensor_map(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Turns the tensors of transformers' GPT-2 into ours; the causal masks are dropped.

        Its matrices lie the other way round, and one of them holds queries', keys' and values'.
        """
        bare = name.removeprefix("transformer.")
        if _MASK.fullmatch(bare):
            return {}
        if match := _MATRIX.fullmatch(bare):
            number, part, kind = match.groups()
            turned, ours = tensor.T if tensor.ndim == 2 else tensor, _MATRICES[part]
            parts = turned.chunk(len(ours)) if tensor.ndim else ()
            if len(parts) != len(ours):  # no GPT-2's; the name, left as it is, will be refused
                return {name: tensor}
            return {
                f"layers.{number}.{own}.{kind}": one for own, one in zip(ours, parts, strict=True)
            }
        if match := _REST.fullmatch(bare):
            number, part, kind = match.groups()
            layer = "" if number is None else f"layers.{number}."
            return {f"{layer}{_NAMES[part]}.{kind}": tensor}
        return {name: tensor}

    def adapt_weights(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Cuts positions that no text reaches, and finds the head: in published files it is tied.

        A tied head's copy of the embedding is dropped. Without a head in the file, an own one is
        the embedding's where it fits, else it stays fresh.
        """
        notes = cut_positions(state, self.length)
        head, tokens = state.get("head.weight"), state.get("tokens.weight")
        if self.tied:
            if head is not None and tokens is not None and torch.equal(head, tokens):
                del state["head.weight"]
            return notes
        if head is None and tokens is not None:
            own = self.head_layer.weight
            fits = self.per_token and tokens.shape == own.shape
            state["head.weight"] = tokens.clone() if fits else own.detach()
            start = "starts as the embedding" if fits else "starts fresh"
            notes.append(f"the file has no head, so it {start}")
        return notes


_MATRICES = {
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj": ("self_attn.out_proj",),
    "mlp.c_fc": ("linear1",),
    "mlp.c_proj": ("linear2",),
}
_NAMES = {
    "wte": "tokens",
    "wpe": "positions",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "ln_f": "norm",
    "lm_head": "head",
}
_MATRIX = re.compile(rf"h\.(\d+)\.({'|'.join(map(re.escape, _MATRICES))})\.(weight|bias)")
_REST = re.compile(rf"(?:h\.(\d+)\.)?({'|'.join(_NAMES)})\.(weight|bias)")
_MASK = re.compile(r"h\.\d+\.attn\.(?:masked_)?bias")


@dataclass(frozen=True)
class Variant:
    """A published size, and what is published of it.

    Attributes:
        figure: the parameters as the paper has them, which the authors later said were wrong.
    """

    dim: int
    depth: int
    heads: int
    parameters: int
    figure: str


VARIANTS = {
    "gpt2": Variant(768, 12, 12, 124_439_808, "117M"),
    "gpt2_medium": Variant(1024, 24, 16, 354_823_168, "345M"),
    "gpt2_large": Variant(1280, 36, 20, 774_030_080, "762M"),
    "gpt2_xl": Variant(1600, 48, 25, 1_557_611_200, "1542M"),
}
register("transformer_decoder", Decoder)
for _name, _variant in VARIANTS.items():
    _published = Published(
        "Radford et al., 2019",
        _variant.parameters,
        "transformers:GPT2LMHeadModel",
        _variant.figure,
        resolution=1024,
        classes=50_257,
        vocabulary=50_257,
    )
    _sizes = {"dim": _variant.dim, "depth": _variant.depth, "heads": _variant.heads}
    register(_name, partial(Decoder, **_sizes, tied=None), _published)  # type: ignore[arg-type]
