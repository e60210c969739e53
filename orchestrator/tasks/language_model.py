"""The next token at each place of a text."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from orchestrator.config.training import LanguageModelTask, SequenceToSequenceTask
from orchestrator.data.text.tokenizer import PAD
from orchestrator.data.types import Batch, DataInfo
from orchestrator.errors import UserError
from orchestrator.tasks.base import Outputs, StepOutput, Task, check_answers


class LanguageModel(Task):
    """Predicts tokens; axes are B samples, T tokens, V tokens of the vocabulary."""

    per_token = True
    answers = "next token"

    def __init__(self, config: LanguageModelTask | SequenceToSequenceTask) -> None:
        self._smoothing = config.label_smoothing

    def loss(self, outputs: Outputs, batch: Batch) -> StepOutput:
        """The mean cross entropy over the batch's tokens, padding left out; 0 where all is padding.

        Raises:
            UserError: if the model does not give logits [B, T, V].
        """
        logits_BTV = outputs if isinstance(outputs, Tensor) else outputs[0]
        label_BT = batch.targets["label"]
        if logits_BTV.shape[:-1] != label_BT.shape:
            raise UserError(
                "the model must give logits for each token, of shape "
                f"{(*label_BT.shape, 'vocabulary')}, but gives {tuple(logits_BTV.shape)}"
            )
        loss = F.cross_entropy(
            logits_BTV.float().flatten(0, 1),
            label_BT.flatten(),
            ignore_index=PAD,
            label_smoothing=self._smoothing,
            reduction="sum",
        )
        return StepOutput(loss / self.weight(batch).clamp(min=1), logits_BTV)

    def weight(self, batch: Batch) -> Tensor:
        """The number of real tokens."""
        return (batch.targets["label"] != PAD).sum()

    def metrics(self, info: DataInfo) -> MetricCollection:
        """Mean −log p of a token, its exponential, and the share of tokens that are right."""
        metrics: dict[str, Metric | MetricCollection] = {
            "nll": TokenNll(),
            "perplexity": Perplexity(),
            "token_accuracy": TokenAccuracy(),
        }
        return MetricCollection(metrics)

    def outputs(self, info: DataInfo) -> int:
        """The vocabulary's size.

        Raises:
            DataError: if the data has other answers than this task learns.
        """
        check_answers(info, self.answers)
        assert info.vocabulary is not None
        return info.vocabulary


class TokenMean(Metric):
    """A mean over real tokens. Sums are kept in double precision: there are many tokens."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits_BTV: Tensor, label_BT: Tensor) -> None:
        """Adds a batch; labels that are `PAD` do not count."""
        real_BT = label_BT != PAD
        self.total += self.values(logits_BTV, label_BT)[real_BT].double().sum()
        self.count += real_BT.sum()

    def values(self, logits_BTV: Tensor, label_BT: Tensor) -> Tensor:
        """What is averaged, for each token: [B, T]."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        """The mean over all tokens."""
        return self.total / self.count


class TokenNll(TokenMean):
    """The mean of −log p(token), in nats."""

    def values(self, logits_BTV: Tensor, label_BT: Tensor) -> Tensor:
        """−log p."""
        log_p_BTV = logits_BTV.float().log_softmax(-1)
        return -log_p_BTV.gather(-1, label_BT[..., None])[..., 0]


class Perplexity(TokenNll):
    """The exponential of the mean of −log p(token)."""

    def compute(self) -> Tensor:
        """exp(nll)."""
        return super().compute().exp()


class TokenAccuracy(TokenMean):
    """The share of tokens that are the likeliest."""

    def values(self, logits_BTV: Tensor, label_BT: Tensor) -> Tensor:
        """1 where right, else 0."""
        right: Any = logits_BTV.argmax(-1) == label_BT
        return right.float()  # type: ignore[no-any-return]
