"""Tasks on text: losses and metrics against their formulas, greedy answers, refusals."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from orchestrator.config.base import build
from orchestrator.config.rules import METRICS
from orchestrator.config.training import ClassifyTask, LanguageModelTask, SequenceToSequenceTask
from orchestrator.data.text.tokenizer import BEGIN, END, PAD, SPECIAL, UNKNOWN, Tokenizer
from orchestrator.data.types import Batch, DataInfo
from orchestrator.errors import DataError, UserError
from orchestrator.tasks.sequence_to_sequence import answer

TOKENIZER = Tokenizer("word", False, (*SPECIAL, *"abcdefgh"))
V = len(TOKENIZER)


def info(shape, names=()):
    return DataInfo(shape, names, (), (), {"val": 4}, "", "", tokenizer=TOKENIZER)


def batch(label, **inputs):
    return Batch(torch.arange(len(label)), inputs, {"label": label})


LABEL = torch.tensor([[4, 5, END, PAD], [6, 7, 8, END]])
LOGITS = torch.randn(2, 4, V, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_the_mean_over_real_tokens():
    task = build("task", LanguageModelTask())
    log_p = LOGITS.log_softmax(-1)
    real = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]
    expected = -sum(log_p[i, j, LABEL[i, j]] for i, j in real) / 7
    found = task.loss(LOGITS, batch(LABEL))
    assert float(found.loss) == pytest.approx(float(expected), rel=1e-6)
    assert found.outputs is LOGITS
    smooth = build("task", LanguageModelTask(label_smoothing=0.2)).loss(LOGITS, batch(LABEL))
    spread = -sum(log_p[i, j].mean() for i, j in real) / 7
    assert float(smooth.loss) == pytest.approx(float(0.8 * expected + 0.2 * spread), rel=1e-6)


def test_metrics_are_their_formulas_over_all_batches():
    task = build("task", LanguageModelTask())
    metrics = task.metrics(info((4,)))
    for row in (0, 1):  # batches with unlike numbers of real tokens
        part = batch(LABEL[row : row + 1])
        task.update(metrics, task.loss(LOGITS[row : row + 1], part), part)
    found = {name: float(value) for name, value in metrics.compute().items()}
    nll = float(F.cross_entropy(LOGITS.flatten(0, 1), LABEL.flatten(), ignore_index=PAD))
    right = (LOGITS.argmax(-1) == LABEL)[LABEL != PAD].double().mean()
    assert found == pytest.approx(
        {"nll": nll, "perplexity": math.exp(nll), "token_accuracy": float(right)}, rel=1e-6
    )


def test_a_uniform_model_is_as_perplexed_as_there_are_tokens():
    task = build("task", LanguageModelTask())
    metrics = task.metrics(info((4,)))
    task.update(metrics, task.loss(torch.zeros(2, 4, V), batch(LABEL)), batch(LABEL))
    assert float(metrics.compute()["perplexity"]) == pytest.approx(V)


@pytest.mark.parametrize(
    ("config", "shape"), [(LanguageModelTask(), (4,)), (SequenceToSequenceTask(), (4, 4))]
)
def test_the_metrics_that_files_may_name_are_those_computed(config, shape):
    metrics = build("task", config).metrics(info(shape))
    assert {*metrics.keys(), "loss"} == set(METRICS[config.type])


@pytest.mark.parametrize(
    ("config", "shape", "names", "use"),
    [
        (ClassifyTask(), (4,), (), "language_model"),
        (ClassifyTask(), (4, 4), (), "sequence_to_sequence"),
        (LanguageModelTask(), (4,), ("a", "b"), "classify"),
        (SequenceToSequenceTask(), (4,), (), "language_model"),
    ],
)
def test_other_answers_are_refused_with_the_task_that_fits(config, shape, names, use):
    with pytest.raises(DataError, match=f"set task.type: {use}"):
        build("task", config).outputs(info(shape, names))


def test_the_head_answers_with_the_vocabulary():
    assert build("task", LanguageModelTask()).outputs(info((4,))) == V
    assert build("task", SequenceToSequenceTask()).outputs(info((4, 4))) == V
    assert build("task", ClassifyTask()).outputs(info((4,), ("a", "b"))) == 2


def test_a_model_without_logits_a_token_is_refused():
    with pytest.raises(UserError, match=r"logits for each token, of shape \(2, 4, 'vocabulary'\)"):
        build("task", LanguageModelTask()).loss(torch.zeros(2, V), batch(LABEL))


# --- answers -------------------------------------------------------------------------------------


class Copier(nn.Module):
    """Repeats the source, token by token, until its `<eos>`; it likes `<pad>` even better."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, tokens, target_tokens):
        self.calls += 1
        assert (target_tokens[:, 0] == BEGIN).all()
        steps = target_tokens.shape[1]
        padded = F.pad(tokens[:, 1:], (0, steps))[:, :steps]
        logits = F.one_hot(padded, V).float()
        logits[..., PAD] = 2.0
        return logits


SOURCE = torch.tensor([[BEGIN, 4, 5, END, PAD], [BEGIN, 6, 7, 8, END]])
TARGET = torch.tensor([[BEGIN, 4, 5, END], [BEGIN, 6, 7, 8]])


def test_greedy_answers_stop_at_their_end_and_never_early():
    model = Copier().eval()
    found = answer(model, {"tokens": SOURCE, "target_tokens": TARGET}, 6)
    assert found.tolist() == [[4, 5, END, PAD, PAD, PAD], [6, 7, 8, END, PAD, PAD]]
    assert model.calls == 6
    assert answer(model, {"tokens": SOURCE[:0], "target_tokens": TARGET[:0]}, 3).shape == (0, 3)


def test_answers_are_written_in_evaluation_alone():
    task = build("task", SequenceToSequenceTask())
    asked = batch(LABEL, tokens=SOURCE, target_tokens=TARGET)
    model = Copier()
    assert isinstance(task.forward(model.train(), asked), torch.Tensor)
    assert model.calls == 1
    output = task.loss(task.forward(model.eval(), asked), asked)
    assert output.answers.tolist() == LABEL.tolist()
    metrics = task.metrics(info((5, 4)))
    task.update(metrics, output, asked)
    assert float(metrics.compute()["token_accuracy"]) < 1  # it would rather say <pad>
    off = build("task", SequenceToSequenceTask(bleu=False))
    assert isinstance(off.forward(model.eval(), asked), torch.Tensor)
    assert "bleu" not in off.metrics(info((5, 4)))


def bleu(answers, references):
    """Papineni et al., 2002, section 2.3, over a corpus with one reference each."""
    right, there = Counter(), Counter()
    for said, meant in zip(answers, references, strict=True):
        for n in range(1, 5):
            grams = Counter(tuple(said[i : i + n]) for i in range(len(said) - n + 1))
            known = Counter(tuple(meant[i : i + n]) for i in range(len(meant) - n + 1))
            right[n] += sum((grams & known).values())
            there[n] += sum(grams.values())
    precision = math.exp(sum(math.log(right[n] / there[n]) for n in range(1, 5)) / 4)
    said, meant = sum(map(len, answers)), sum(map(len, references))
    return precision * (1.0 if said > meant else math.exp(1 - meant / said))


def test_bleu_is_the_papers_over_all_batches():
    task = build("task", SequenceToSequenceTask())
    metrics = task.metrics(info((5, 8)))
    label = torch.tensor([[4, 5, 6, 7, 8, 9, END, PAD], [4, 5, 6, 7, 8, END, PAD, PAD]])
    said = torch.tensor([[4, 5, 6, 7, 9, END, PAD, PAD], [9, 4, 5, 6, 7, END, PAD, PAD]])
    for row in (0, 1):
        logits = torch.zeros(1, 8, V)
        part = batch(label[row : row + 1])
        output = task.loss((logits, said[row : row + 1]), part)
        task.update(metrics, output, part)
    words = [TOKENIZER.decode(row).split() for row in said]
    meant = [TOKENIZER.decode(row).split() for row in label]
    assert float(metrics.compute()["bleu"]) == pytest.approx(bleu(words, meant), rel=1e-5)


def test_an_unknown_token_is_never_right():
    task = build("task", SequenceToSequenceTask())
    label = torch.tensor([[4, 5, 6, 7, UNKNOWN, END]])
    values = []
    for said in (label, torch.tensor([[4, 5, 6, 7, 8, END]])):
        metrics = task.metrics(info((5, 6)))
        task.update(metrics, task.loss((torch.zeros(1, 6, V), said), batch(label)), batch(label))
        values.append(float(metrics.compute()["bleu"]))
    assert values[0] == values[1] < 1
