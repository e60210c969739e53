"""A text that answers a text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.text import BLEUScore

from orchestrator.config.training import SequenceToSequenceTask
from orchestrator.data.text.rows import TARGET_TOKENS
from orchestrator.data.text.tokenizer import BEGIN, END, PAD, SPECIAL, UNKNOWN, Tokenizer
from orchestrator.data.types import Batch, DataInfo
from orchestrator.tasks.base import Outputs, StepOutput
from orchestrator.tasks.language_model import LanguageModel


class SequenceToSequence(LanguageModel):
    """Predicts each token of the target from the source and the right tokens before it.

    Axes: B samples, S tokens of the source, T tokens of the target.
    """

    answers = "text"

    def __init__(self, config: SequenceToSequenceTask) -> None:
        super().__init__(config)
        self._bleu = config.bleu

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """Logits [B, T, V]; in evaluation, the model's own answers int64[B, T] behind them."""
        logits = super().forward(model, batch)
        if model.training or not self._bleu or not isinstance(logits, Tensor):
            return logits
        return logits, answer(model, batch.inputs, batch.targets["label"].shape[1])

    @property
    def calls_model_once(self) -> bool:
        """See `Task.calls_model_once`; BLEU asks the model for every token."""
        return not self._bleu

    def loss(self, outputs: Outputs, batch: Batch) -> StepOutput:
        """See `LanguageModel.loss`."""
        output = super().loss(outputs, batch)
        if isinstance(outputs, Tensor) or outputs[1].is_floating_point():
            return output
        return StepOutput(output.loss, output.outputs, answers=outputs[1])

    def metrics(self, info: DataInfo) -> MetricCollection:
        """A language model's, and BLEU of the model's own answers."""
        metrics = super().metrics(info)
        if self._bleu:
            assert info.tokenizer is not None
            metrics.add_metrics({"bleu": Bleu(info.tokenizer)})
        return metrics

    def update(self, metrics: MetricCollection, output: StepOutput, batch: Batch) -> None:
        """See `Task.update`; only BLEU asks for the answers."""
        label = batch.targets["label"].to(output.outputs.device)
        metrics.update(output.outputs.float(), label, answers=output.answers)


def answer(model: nn.Module, inputs: dict[str, Tensor], steps: int) -> Tensor:
    """Writes answers greedily, token by token, always `steps` times.

    Ranks whose parameters are sharded meet in every forward pass, so none stops early.

    Args:
        model: in evaluation mode.
        inputs: of a batch; of the target only its first token's place is used.
        steps: tokens to write.

    Returns:
        int64[B, steps]: each answer with its `<eos>`, then `PAD`.
    """
    source = {name: tensor for name, tensor in inputs.items() if name != TARGET_TOKENS}
    written_BT = torch.full_like(inputs[TARGET_TOKENS][:, :1], BEGIN)
    ended_B = torch.zeros_like(written_BT[:, 0], dtype=torch.bool)
    for _ in range(steps):
        logits_BV = model(**source, **{TARGET_TOKENS: written_BT})[:, -1].float()
        logits_BV[:, [PAD, BEGIN]] = -torch.inf
        next_B = logits_BV.argmax(-1).masked_fill(ended_B, PAD)
        written_BT = torch.cat([written_BT, next_B[:, None]], 1)
        ended_B = ended_B | (next_B == END)
    return written_BT[:, 1:]


class Bleu(BLEUScore):
    """BLEU-4 over the corpus (Papineni et al., 2002), from 0 to 1, of words between blanks.

    The right answer is the label as the vocabulary knows it. An unknown token in an answer is
    never right, not even where the right answer has one too.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(n_gram=4)
        self._tokenizer = tokenizer

    def update(self, logits: Tensor, label: Tensor, answers: Tensor) -> None:  # type: ignore[override]
        """Adds a batch.

        Args:
            logits: [B, T, V]; not used.
            label: int64[B, T], the right answers.
            answers: int64[B, T], the model's.
        """
        texts = [self._tokenizer.decode(row) for row in answers.tolist()]
        texts = [text.replace(SPECIAL[UNKNOWN], "<unsaid>") for text in texts]
        super().update(texts, [[self._tokenizer.decode(row)] for row in label.tolist()])
