"""Whole runs on real text: Python's own help pages, as the standard library ships them."""

import csv
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from orchestrator import api, cli
from orchestrator.config.base import build
from orchestrator.config.load import config_from_mapping
from orchestrator.data import memory
from orchestrator.data.memory import load_data
from orchestrator.data.text.tokenizer import END
from orchestrator.errors import DataError, RunFolderError
from orchestrator.evaluate import evaluate
from orchestrator.host import SingleWorker
from orchestrator.parts import build_loader
from orchestrator.predict import answer_texts, continue_text
from orchestrator.run_folder.predictions import read_predictions
from orchestrator.serve.predictor import load_any, load_predictor

LENGTH = 32


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    memory._memory.clear()
    yield
    memory._memory.clear()


@pytest.fixture(scope="module")
def topics():
    from pydoc_data.topics import topics

    return topics


def table(path, columns, found):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *found])
    return str(path)


def train(tmp_path, source, model, **sections):
    file = {
        "name": "run",
        "data": {"source": source, "split": {"val": 0.2, "select": 0.1}},
        "model": model,
        "optimizer": {"type": "adamw", "lr": 1e-2},
        "scale": {"cpus": 1, "gpus": 0},
        **sections,
    }
    file["train"] = {
        "batch_size": 16,
        "micro_batch": 8,
        "precision": "fp32",
        "memory_format": "contiguous",
        **sections.get("train", {}),
    }
    config = config_from_mapping(file)
    result = api.train(config, runs_dir=tmp_path / "runs")
    assert result.state == "done"
    return config, result


def evaluations(result):
    lines = (result.root / "metrics.jsonl").read_text().splitlines()
    return [one["values"] for one in map(json.loads, lines) if one["split"] == "val"]


def test_a_language_model_beats_the_frequencies_of_its_characters(tmp_path, topics, capsys):
    folder = tmp_path / "text"
    pages = {"train": ("assert", "for", "if", "while", "with"), "test": ("del", "pass")}
    for split, names in pages.items():
        (folder / split).mkdir(parents=True)
        for name in names:
            (folder / split / f"{name}.txt").write_text(topics[name])
    source = {"type": "text_folder", "path": str(folder), "length": LENGTH}
    config, result = train(
        tmp_path,
        source | {"tokenizer": {"level": "character"}},
        {"type": "gru", "embedding": 16, "hidden": 48},
        task={"type": "language_model"},
        evaluate={"monitor": "val/perplexity", "mode": "min"},
        train={"for": "4 epochs"},
    )
    data = load_data(config.data)
    labels = [data.numbers[data.train.targets["label"][data.ids[s]]] for s in ("train", "val")]
    counts = Counter(labels[0].ravel().tolist())
    total = sum(counts.values()) + data.info.vocabulary
    nll = -np.mean([math.log((counts[t] + 1) / total) for t in labels[1].ravel().tolist()])
    found = evaluations(result)[-1]
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]), rel=1e-6)
    # All windows are whole, so the mean over samples is that over tokens.
    assert found["loss"] == pytest.approx(found["nll"], rel=1e-5)
    assert found["nll"] < nll - 0.3
    with pytest.raises(DataError, match="one label a sample"):
        api.evaluate(result.root, "val")
    best = min(evaluations(result), key=lambda values: values["perplexity"])
    measured = api.measure(result.root)
    assert measured == pytest.approx({name: best[name] for name in measured}, rel=1e-5)
    _is_measured_on_test(result.root, nll, capsys)
    with pytest.raises(RunFolderError, match="a token for each token"):
        load_any(result.root)
    _goes_on(result.root, data.info.tokenizer)


def _is_measured_on_test(root, worst, capsys):
    events = root / "events.jsonl"
    assert "test_read" not in events.read_text()
    assert cli.run(["evaluate", str(root), "--split", "test", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["split"]) == ("run", "test")
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]), rel=1e-6)
    assert found["nll"] < worst
    assert "test_read" in events.read_text()
    assert cli.run(["evaluate", str(root)]) == 0
    assert capsys.readouterr().out.startswith("run on val: loss ")
    assert cli.run(["evaluate", str(root), "--split", "select"]) == 0


def _goes_on(root, tokenizer):
    network, _ = api.load_model(root)
    written = continue_text(root, "The ", 5)
    numbers = tokenizer.encode("The " + written)
    logits = network(torch.tensor([[END, *numbers]]))[0]
    assert logits[-6:-1].argmax(-1).tolist() == numbers[-5:]
    drawn = [continue_text(root, "", 40, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(RunFolderError, match="does not answer with texts"):
        answer_texts(root, ["x"])


@pytest.mark.parametrize(
    "style",
    [
        {"attention": "local", "window": 4},
        {"attention": "sparse", "window": 8},
        {"attention": "linear"},
        {"positions": "relative"},
        {"positions": "rotary"},
    ],
    ids=lambda style: "-".join(map(str, style.values())),
)
def test_a_language_model_learns_with_any_attention(style, tmp_path, topics):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "for.txt").write_text(topics["for"])
    source = {"type": "text_folder", "path": str(folder), "length": LENGTH}
    _, result = train(
        tmp_path,
        source | {"tokenizer": {"level": "character"}},
        {"type": "transformer_decoder", "dim": 16, "depth": 1, "heads": 2, **style},
        task={"type": "language_model"},
        evaluate={"monitor": "val/nll", "mode": "min", "every": "1 epoch"},
        train={"for": "3 epochs"},
    )
    first, *_, last = evaluations(result)
    assert last["nll"] < 0.95 * first["nll"]


def test_a_classifier_tells_two_help_pages_apart_and_answers_later(tmp_path, topics, capsys):
    found = []
    for name in ("specialnames", "formatstrings"):
        words = topics[name].split()
        found += [(" ".join(words[n : n + 12]), name) for n in range(0, len(words) - 12, 12)][:150]
    source = {"type": "csv", "path": table(tmp_path / "a.csv", ("text", "label"), found)}
    source |= {"label": "label", "length": LENGTH, "tokenizer": {"lowercase": True}}
    model = {"type": "bigru_attention", "embedding": 16, "hidden": 16}
    config, result = train(tmp_path, source, model, train={"for": "4 epochs"})
    assert evaluations(result)[-1]["accuracy"] > 0.8
    data = load_data(config.data)
    kept = read_predictions(result.root / "predictions" / "val.parquet")
    assert kept.ids.tolist() == data.ids["val"].tolist()
    texts = [found[place][0] for place in kept.ids]
    again = load_any(result.root).predict(texts).numpy()
    np.testing.assert_allclose(again, kept.probabilities(), rtol=1e-4, atol=1e-6)
    network, spec = api.load_model(result.root)
    assert spec.tokenizer == data.info.tokenizer
    assert network(torch.zeros(1, LENGTH, dtype=torch.long)).shape == (1, 2)
    with pytest.raises(RunFolderError, match="reads text"):
        load_predictor(result.root)
    (tmp_path / "new.txt").write_text("the __len__ method of a class")
    code = cli.run(["predict", str(result.root), str(tmp_path / "new.txt"), "--top", "1"])
    said = capsys.readouterr().out
    assert (code, "specialnames" in said) == (0, True), said
    assert api.evaluate(result.root, "val").accuracy == pytest.approx(
        evaluations(result)[-1]["accuracy"], abs=0.05
    )


def test_a_transformer_learns_to_answer(tmp_path, topics):
    words = sorted({word for text in topics.values() for word in text.split() if word.isalpha()})
    found = [(word[:6], word[:6].upper()) for word in words[::4]][:600]
    source = {"type": "csv", "path": table(tmp_path / "a.csv", ("low", "high"), found)}
    source |= {"text": "low", "target": "high", "length": 8, "tokenizer": {"level": "character"}}
    config, result = train(
        tmp_path,
        source,
        {"type": "transformer", "dim": 32, "depth": 1, "heads": 2, "dropout": 0.0},
        task={"type": "sequence_to_sequence"},
        evaluate={"monitor": "val/nll", "mode": "min", "every": "1 epoch"},
        optimizer={"type": "adamw", "lr": 5e-3},
        train={"for": "3 epochs"},
    )
    first, *_, last = evaluations(result)
    assert last["nll"] < 0.8 * first["nll"]
    assert last["token_accuracy"] > first["token_accuracy"]
    _loss_is_the_mean_over_tokens(config, result.root)
    said = answer_texts(result.root, ["abc", "print"])
    assert [text == text.upper() for text in said] == [True, True]
    # Words of one token list have no four-grams, so that BLEU is 0; the answers are what counts.
    held = [found[place] for place in load_data(config.data).ids["val"]]
    again = answer_texts(result.root, [low for low, _ in held])
    letters = [
        a == b
        for one, (_, high) in zip(again, held, strict=True)
        for a, b in zip(one, high, strict=False)
    ]
    assert np.mean(letters) > 0.2
    assert 0 <= last["bleu"] <= 1
    with pytest.raises(RunFolderError, match="is no language model"):
        continue_text(result.root, "x", 1)


def _loss_is_the_mean_over_tokens(config, root):
    """However the words, which are of unlike lengths, come together in batches."""
    network, _ = api.load_model(root)
    task, loader = build("task", config.task), build_loader(config, SingleWorker())

    def step(task, batch):
        with torch.no_grad():
            return task.loss(task.forward(network, batch), batch)

    found = [evaluate(step, task, loader, "val", SingleWorker(), size).values for size in (7, 512)]
    for values in found:
        assert values["val/loss"] == pytest.approx(values["val/nll"], rel=1e-6)
        assert values["val/nll"] == pytest.approx(found[0]["val/nll"], rel=1e-5)


def test_the_model_must_fit_the_text_when_the_folder_says_what_it_is(tmp_path, topics):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(topics["for"])
    source = {"type": "text_folder", "path": str(tmp_path / "text"), "length": 16}
    with pytest.raises(DataError, match=r"answer is a next token; set task\.type: language_model"):
        train(tmp_path, source, {"type": "gru"})
