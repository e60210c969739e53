"""Encoders of text, as BERT's: every token sees the whole text.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2019: blocks with the norm
behind each residual sum, GELU, learned positions, and the first token's features through `pooler`
for the whole text. The first token must be a beginning-of-text token, which is BERT's [CLS].
Weights in the layout of the library transformers load through `Encoder.key_map`; they ask for the
vocabulary that they were trained with.

Axes: N batch, T tokens, D features.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .layers.text_attention import AttentionStyle, check_reach
from .layers.text_block import Block, build_positions, check_sizes, cut_positions, init_matrices
from .registry import Published, register
from .sequence import PAD, SequenceModel
from .stages import Stage, run_stages

Pair = tuple[torch.Tensor, torch.Tensor]
EPSILON = 1e-12
"""Of the norms, as in the published code."""


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
        positions: `learned`, `sinusoidal`, or, with full attention, `rotary` or `relative`.
        attention: `full`, `local`, `sparse` or `linear`; see `layers/text_attention.py`.
        window: tokens: how far one sees if `local`, how many are a block if `sparse`.
        token_types: kinds of tokens that are told apart, as BERT does the two texts of a pair.
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
        token_types: int = 0,
    ) -> None:
        super().__init__(num_classes, vocabulary, length, per_token, sees_ahead=True)
        hidden = 4 * dim if hidden is None else hidden
        check_sizes(dim, depth, heads, hidden, dropout)
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = build_positions(positions, dim, self.length)
        self.types = nn.Embedding(token_types, dim) if token_types else nn.Identity()
        self.token_types = token_types
        self.norm = nn.LayerNorm(dim, eps=EPSILON)
        self.dropout = nn.Dropout(dropout)
        style = AttentionStyle(attention, window, positions, self.length)
        if not per_token:
            check_reach(style, depth)
        make = partial(Block, norm_first=False, activation="gelu", eps=EPSILON, attention=style)
        self.layers = nn.ModuleList(
            make(dim, heads, hidden, dropout, inner_dropout=False) for _ in range(depth)
        )
        self.pooler = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, num_classes)
        init_matrices(self)

    def init_head(self, layer: nn.Module) -> None:
        """As the other linear layers."""
        init_matrices(layer)

    def forward(
        self, tokens: torch.Tensor, token_types: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Tokens [N, T] to logits [N, classes].

        Args:
            tokens: whole numbers, 0 for padding.
            token_types: of each token, [N, T]; by default 0, as of a text alone.

        Raises:
            ValueError: for types, if the network was built without.
        """
        if token_types is not None and not self.token_types:
            raise ValueError("the network knows no types of tokens; build it with token_types: 2")
        state = tokens if token_types is None else (tokens, token_types)
        return run_stages(self.stages(), state, recompute=self._checkpointing)  # type: ignore[no-any-return]

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``layers.0`` …, ``pool`` and ``head``."""
        blocks = [
            Stage(f"layers.{number}", partial(self._block, block), (block,))
            for number, block in enumerate(self.layers)
        ]
        stem = Stage("stem", self._stem, (self.tokens, self.positions, self.types, self.norm))
        pool = Stage("pool", self._pool, (self.pooler,))
        return [stem, *blocks, pool, Stage("head", self._classify, (self.head,))]

    def _stem(self, state: torch.Tensor | Pair) -> Pair:
        tokens_NT, types_NT = (state, None) if isinstance(state, torch.Tensor) else state
        x_NTD = self.positions(self.tokens(tokens_NT))
        if self.token_types:
            types_NT = torch.zeros_like(tokens_NT) if types_NT is None else types_NT
            x_NTD = x_NTD + self.types(types_NT)
        return self.dropout(self.norm(x_NTD)), tokens_NT

    def _block(self, block: nn.Module, state: Pair) -> Pair:
        x_NTD, tokens_NT = state
        return block(x_NTD, mask_NTS=(tokens_NT != PAD)[:, None]), tokens_NT

    def _pool(self, state: Pair) -> torch.Tensor:
        return torch.tanh(self.pooler(state[0][:, 0]))

    def _classify(self, x_ND: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(x_ND))  # type: ignore[no-any-return]

    @staticmethod
    def key_map(name: str) -> str | None:
        """Renames the keys of transformers' BERT; what only its pre-training needs is dropped.

        Published files have them with ``bert.`` in front or without, and old ones call a norm's
        weight and bias ``gamma`` and ``beta``.
        """
        bare = name.removeprefix("bert.")
        if bare.startswith("cls.") or bare == "embeddings.position_ids":
            return None
        if match := _KEY.fullmatch(bare):
            number, part, kind = match.groups()
            layer = "" if number is None else f"layers.{number}."
            return f"{layer}{_PARTS[part]}.{_KINDS.get(kind, kind)}"
        return name

    def adapt_weights(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Cuts positions that no text reaches; pooler and head stay fresh if the file has none.

        Files from pre-training alone have no head, and some of them no pooler.
        """
        notes = cut_positions(state, self.length)
        for part in ("pooler", "head"):
            if f"{part}.weight" not in state:
                own = self.get_submodule(part).state_dict()
                state.update({f"{part}.{kind}": tensor for kind, tensor in own.items()})
                notes.append(f"the file has no {part}, so it starts fresh")
        return notes


_PARTS = {
    "embeddings.word_embeddings": "tokens",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
    "pooler.dense": "pooler",
    "classifier": "head",
}
_KINDS = {"gamma": "weight", "beta": "bias"}
_KEY = re.compile(
    rf"(?:encoder\.layer\.(\d+)\.)?({'|'.join(map(re.escape, _PARTS))})\.(weight|bias|gamma|beta)"
)


@dataclass(frozen=True)
class Variant:
    """A published size, and what is published of it, with two classes.

    Attributes:
        figure: the parameters as the paper has them.
    """

    dim: int
    depth: int
    heads: int
    parameters: int
    figure: str


VARIANTS = {
    "bert_base": Variant(768, 12, 12, 109_483_778, "110M"),
    "bert_large": Variant(1024, 24, 16, 335_143_938, "340M"),
}
register("transformer_encoder", Encoder)
for _name, _variant in VARIANTS.items():
    _published = Published(
        "Devlin et al., 2019",
        _variant.parameters,
        "transformers:BertForSequenceClassification",
        _variant.figure,
        resolution=512,
        classes=2,
        vocabulary=30_522,
    )
    _sizes = {"dim": _variant.dim, "depth": _variant.depth, "heads": _variant.heads}
    register(_name, partial(Encoder, **_sizes, token_types=2), _published)  # type: ignore[arg-type]
