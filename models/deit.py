"""Data-efficient image transformers: vision transformers that learn from a teacher too.

Touvron et al., "Training Data-Efficient Image Transformers & Distillation through Attention",
2021. `deit_*_patch16` are the networks of `vit.py`, sized as in Table 1; what makes them DeiT is
their training, of which stochastic depth (0.1, Table 9) is an option here. `deit_*_distilled_*`
have a second token with a second linear layer, `head_dist` (section 4, Figure 2).

In training a distilled network returns two logits: its classifier's Z and its distillation
head's Z_d. With labels y, a teacher's logits Z_t, softmax ψ and cross entropy CE, they are for

- hard distillation (equation 3): ½ CE(ψ(Z), y) + ½ CE(ψ(Z_d), argmax Z_t);
- soft distillation (equation 2): (1−λ) CE(ψ(Z), y) + λ T² KL(ψ(Z_t/T) ‖ ψ(Z_d/T)), where the
  paper takes λ = 0.1 and T = 3.

Hard distillation was better there (Table 3). Where there is no teacher both learn the labels.
In evaluation a distilled network returns the mean of the two logits, as timm's do; the paper sums
their probabilities (section 4). Names, shapes and initialisation are timm's.

Axes: N batch, T tokens, C channels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from .registry import Published, register
from .stages import Stage
from .vit import Variant, VisionTransformer


class DistilledVisionTransformer(VisionTransformer):
    """A vision transformer with a distillation token, `dist_token`, beside its class token.

    Its arguments are those of `VisionTransformer`. In training it returns the class token's logits
    and the distillation token's; in evaluation, their mean.
    """

    undecayed = (*VisionTransformer.undecayed, "dist_token")
    extra_tokens = 2

    def _build_readout(self, channels: int) -> None:
        super()._build_readout(channels)
        self.dist_token = nn.Parameter(torch.empty(1, 1, channels))
        self.head_dist = nn.Linear(channels, self.num_classes)

    def _initialise(self) -> None:
        super()._initialise()
        nn.init.trunc_normal_(self.dist_token, std=0.02)

    @property
    def head_names(self) -> tuple[str, ...]:
        """Both heads."""
        return ("head", "head_dist")

    def first_tokens(self) -> tuple[nn.Parameter, ...]:
        """The class token, then the distillation token; [1, 1, C] each."""
        return (self.cls_token, self.dist_token)

    def _head_stage(self) -> Stage:
        return Stage("head", self._classify_both, (self.norm, self.head, self.head_dist))

    def _classify_both(
        self, x_NTC: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        class_NC, distilled_NC = self.norm(x_NTC[:, :2]).unbind(1)
        logits, distilled = self.head(class_NC), self.head_dist(distilled_NC)
        return (logits, distilled) if self.training else (logits + distilled) / 2


VARIANTS = {
    "deit_tiny_patch16": Variant(192, 12, 3, drop_path=0.1),
    "deit_small_patch16": Variant(384, 12, 6, drop_path=0.1),
    "deit_base_patch16": Variant(768, 12, 12, drop_path=0.1),
}
# Parameters of the reference, and as the paper's Tables 1 and 5 have them.
PARAMETERS = {
    "deit_tiny_patch16": (5_717_416, "5M"),
    "deit_small_patch16": (22_050_664, "22M"),
    "deit_base_patch16": (86_567_656, "86M"),
    "deit_tiny_distilled_patch16": (5_910_800, "6M"),
    "deit_small_distilled_patch16": (22_436_432, "22M"),
    "deit_base_distilled_patch16": (87_338_192, "87M"),
}
for _name, (_count, _figure) in PARAMETERS.items():
    _network = DistilledVisionTransformer if "_distilled" in _name else VisionTransformer
    _variant = VARIANTS[_name.replace("_distilled", "")]
    _published = Published("Touvron et al., 2021", _count, f"timm:{_name}_224", _figure)
    register(_name, partial(_network, _variant), _published)
