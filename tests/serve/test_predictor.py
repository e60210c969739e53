from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from orchestrator.config.serving import ServeConfig
from orchestrator.errors import RunFolderError, UserError
from orchestrator.run_folder.model_file import load_model
from orchestrator.serve.backend import Computed, NoAnswerError
from orchestrator.serve.compute import answer_together
from orchestrator.serve.control.table import VersionSpec
from orchestrator.serve.executors.base import PlainExecutor
from orchestrator.serve.files import predict_files, predict_text_files
from orchestrator.serve.predictor import CHUNK, SinglePredictor, load_any, load_predictor
from tests.serve.live import live_server
from tests.serve.serving import (
    LABELS,
    SHAPE,
    encode,
    make_ensemble,
    make_run,
    make_text_run,
    small_spec,
)


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))


def reference(root, pixels: Tensor, mean: float = 0.3, std: float = 0.35) -> Tensor:
    """Logits by the definition: the network on (x − mean)/std."""
    network, _ = load_model(root)
    with torch.no_grad():
        return network((pixels - mean) / std)


def test_a_run_answers_with_the_softmax_of_its_network(tmp_path, pixels):
    root = make_run(tmp_path / "a")
    predictor = load_predictor(root)
    assert torch.allclose(
        predictor.predict(pixels), reference(root, pixels).softmax(1), atol=1e-6, rtol=0
    )
    assert (predictor.card.name, predictor.card.shape) == ("a", SHAPE)
    assert predictor.card.label_names == LABELS


def test_answers_do_not_depend_on_their_neighbours(tmp_path):
    predictor = load_predictor(make_run(tmp_path / "a"))
    many = torch.rand(CHUNK + 3, *SHAPE)
    together = predictor.predict(many)
    alone = torch.cat([predictor.predict(one[None]) for one in many])
    assert torch.allclose(together, alone, atol=1e-5, rtol=0)


def test_an_ensemble_averages_probabilities_of_members_with_their_own_mean_and_std(
    tmp_path, pixels
):
    a = make_run(tmp_path / "a", 0)
    b = make_run(tmp_path / "b", 1, mean=(0.5,), std=(0.2,))
    root = make_ensemble(tmp_path / "e", [a, b], [0.75, 0.25])
    predictor = load_predictor(root, "both")
    expected = 0.75 * reference(a, pixels).softmax(1) + 0.25 * reference(
        b, pixels, 0.5, 0.2
    ).softmax(1)
    assert torch.allclose(predictor.predict(pixels), expected, atol=1e-6, rtol=0)
    assert (predictor.card.name, predictor.card.members) == ("both", 2)


def test_an_ensemble_of_logits(tmp_path, pixels):
    a, b = make_run(tmp_path / "a", 0), make_run(tmp_path / "b", 1)
    root = make_ensemble(tmp_path / "e", [a, b], [0.5, 0.5], "logits")
    expected = ((reference(a, pixels) + reference(b, pixels)) / 2).softmax(1)
    assert torch.allclose(load_predictor(root).predict(pixels), expected, atol=1e-6, rtol=0)


def test_a_changed_member_is_refused(tmp_path):
    a, b = make_run(tmp_path / "a", 0), make_run(tmp_path / "b", 1)
    root = make_ensemble(tmp_path / "e", [a, b], [0.5, 0.5])
    make_run(tmp_path / "b", 2)
    with pytest.raises(RunFolderError, match="sha256"):
        load_predictor(root)


def test_members_that_do_not_fit_are_refused(tmp_path):
    a = make_run(tmp_path / "a", 0)
    b = make_run(tmp_path / "b", 1, shape=(1, 16, 16))
    root = make_ensemble(tmp_path / "e", [a, b], [0.5, 0.5])
    with pytest.raises(RunFolderError, match="share input shape"):
        load_predictor(root)


def test_an_ensemble_of_texts_answers_everywhere(tmp_path):
    """To files and over HTTP by the definition."""
    members = [make_text_run(tmp_path / name, seed) for seed, name in enumerate("ab")]
    root = make_ensemble(tmp_path / "mail", members, [0.75, 0.25])
    texts = ["free money", "meet you tomorrow"]
    a, b = (load_any(one).predict(texts) for one in members)
    expected = (0.75 * a + 0.25 * b).numpy()
    assert load_any(root).card.members == 2
    files = [tmp_path / f"{number}.txt" for number in range(2)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    rows = [one.probabilities for one in predict_text_files(root, files)]
    assert np.allclose(rows, expected, atol=1e-6, rtol=0)
    spec = VersionSpec("mail", "1", str(root))
    with live_server([spec], config=ServeConfig(executor="torch", max_batch=2)) as live:
        tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": texts}
        asked = {"inputs": [tensor], "outputs": [{"name": "probabilities"}]}
        answer = live.client.post("/v2/models/mail/infer", json=asked).json()
        found = np.reshape(answer["outputs"][0]["data"], (2, 2))
        assert np.allclose(found, expected, atol=1e-5, rtol=0)
        said = live.client.post("/predict/mail", json={"texts": texts}).json()
        assert len(said["answers"]) == 2 and said["members"] == 2
        refused = live.client.post("/explain/mail", content=encode(Image.new("L", (12, 12))))
        assert refused.status_code == 400


def test_images_and_texts_do_not_answer_together(tmp_path):
    members = [make_run(tmp_path / "a"), make_text_run(tmp_path / "b")]
    root = make_ensemble(tmp_path / "e", members, [0.5, 0.5])
    with pytest.raises(RunFolderError, match="b reads texts, a images"):
        load_any(root)
    with pytest.raises(RunFolderError, match=r"b reads text, so it answers to \.txt files"):
        load_predictor(members[1])


class Brittle(nn.Module):
    """Divides by the image's mean, and fails on an image that is white throughout."""

    def forward(self, x: Tensor) -> Tensor:
        if (x.flatten(1).mean(1) == 1).any():
            raise ValueError("white")
        return (x / x.mean((1, 2, 3), keepdim=True)).flatten(1)[:, :3]


@pytest.mark.parametrize(("value", "why"), [(0.0, "no finite numbers"), (1.0, "ValueError")])
def test_one_bad_item_fails_alone(value, why):
    predictor = SinglePredictor(Brittle(), small_spec(mean=(0.0,), std=(1.0,)), "brittle")
    good = np.random.default_rng(0).random((2, *SHAPE), dtype=np.float32)
    bad = np.full((1, *SHAPE), value, np.float32)
    executor = PlainExecutor(predictor, 32)
    first, failed, last = answer_together(executor, [good, bad, good[:1]])
    assert isinstance(first, Computed) and isinstance(last, Computed)
    assert isinstance(failed, NoAnswerError) and why in failed.message
    expected = predictor.predict(torch.from_numpy(good)).numpy()
    assert np.allclose(first.probabilities, expected, atol=1e-6)
    assert np.allclose(last.probabilities, expected[:1], atol=1e-6)


def test_files_on_disk(tmp_path, grey):
    from PIL import Image

    predictor = load_predictor(make_run(tmp_path / "a"))
    image, wide, floats = tmp_path / "x.png", tmp_path / "x.npy", tmp_path / "f.npy"
    image.write_bytes(encode(Image.fromarray(grey)))
    np.save(wide, np.stack([grey, 255 - grey])[:, None])
    np.save(floats, (grey[None] / 255).astype(np.float32))
    answers = predict_files(predictor, [image, wide, floats], top=2)
    assert [one.input for one in answers] == [
        str(image),
        f"{wide}[0]",
        f"{wide}[1]",
        str(floats),
    ]
    assert answers[0].probabilities == pytest.approx(answers[1].probabilities, abs=1e-6)
    assert answers[0].probabilities == pytest.approx(answers[3].probabilities, abs=1e-6)
    assert answers[0].probabilities != pytest.approx(answers[2].probabilities, abs=1e-3)
    assert len(answers[0].predictions) == 2
    best = LABELS[int(np.argmax(answers[0].probabilities))]
    assert answers[0].predictions[0].label == best


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 5, 5), np.uint8),
        np.zeros(SHAPE, np.int64),
        np.full(SHAPE, 2.0),
        np.full(SHAPE, np.nan),
        np.zeros((0, *SHAPE), np.uint8),
        np.array([{"pickled": 1}]),
    ],
)
def test_arrays_that_are_no_images_are_refused_by_name(tmp_path, array):
    predictor = load_predictor(make_run(tmp_path / "a"))
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=r"x\.npy"):
        predict_files(predictor, [tmp_path / "x.npy"])


def test_orch_predict_prints_one_document(tmp_path, grey):
    from click.testing import CliRunner
    from PIL import Image

    from orchestrator.cli.predict import predict_command

    make_run(tmp_path / "runs" / "a")
    (tmp_path / "x.png").write_bytes(encode(Image.fromarray(grey)))
    arguments = ["a", str(tmp_path / "x.png"), "--runs-dir", str(tmp_path / "runs")]
    printed = CliRunner().invoke(predict_command, [*arguments, "--json"], catch_exceptions=False)
    document = json.loads(printed.stdout)
    assert document["model"] == "a"
    assert sum(document["inputs"][0]["probabilities"]) == pytest.approx(1, abs=1e-5)
    shown = CliRunner().invoke(predict_command, [*arguments, "--top", "1"], catch_exceptions=False)
    assert document["inputs"][0]["predictions"][0]["label"] in shown.stdout
