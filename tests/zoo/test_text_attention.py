"""Transformers for text whose tokens see some of the others, or know distances."""

import copy

import pytest
import torch

from orchestrator import models
from orchestrator.models.layers.linear_attention import LinearAttention
from orchestrator.models.layers.sparse_attention import BlockSparseAttention, LocalAttention
from orchestrator.models.stages import run_stages

VOCABULARY, LENGTH = 20, 12
NAMES = ("transformer_encoder", "transformer_decoder")
STYLES = {
    "local": {"attention": "local", "window": 6},
    "sparse": {"attention": "sparse", "window": 3},
    "linear": {"attention": "linear"},
    "relative": {"positions": "relative"},
}


def make(name, **given):
    torch.manual_seed(0)
    sizes = {"dim": 8, "depth": 2, "heads": 2, "dropout": 0.0}
    needed = {"num_classes": VOCABULARY, "vocabulary": VOCABULARY, "length": LENGTH}
    model = models.create_sequence_model(name, **needed | sizes | given).double()
    for parameter in model.parameters():  # what starts near zero would hide what it does
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def tokens():
    return torch.randint(1, VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["local", "sparse"])
def test_a_window_as_long_as_the_text_is_full_attention(name, kind):
    full = make(name).eval()
    near = make(name, attention=kind, window=LENGTH).eval()
    kinds = {"local": LocalAttention, "sparse": BlockSparseAttention}
    assert type(near.layers[0].self_attn) is kinds[kind]
    near.load_state_dict(full.state_dict())  # the same names, so public weights load
    x = tokens()
    x[1, 7:] = 0
    close(near(x), full(x))


def test_local_attention_reaches_a_window_in_each_block():
    model = make("transformer_decoder", attention="local", window=2, per_token=True).eval()
    x = tokens()
    other = x.clone()
    other[:, 0] = x[:, 0] % (VOCABULARY - 1) + 1
    apart = (model(x) - model(other)).abs().amax((0, 2))
    reach = 2 * 2  # a window of two in each of two blocks
    assert (apart[: reach + 1] > 1e-6).all()
    assert (apart[reach + 1 :] == 0).all()


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        # Blocks of three tokens: the first sees all and is seen by all, others their neighbours.
        ("transformer_encoder", [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3], [0, 2, 3]]),
        # Four blocks, so the last two, and every second before them.
        ("transformer_decoder", [[0], [0, 1], [0, 1, 2], [1, 2, 3]]),
    ],
)
def test_the_layout_of_sparse_attention(name, seen):
    assert make(name, attention="sparse", window=3).layers[1].self_attn.seen == seen


def test_linear_attention_is_in_every_block():
    model = make("transformer_decoder", attention="linear")
    assert all(isinstance(block.self_attn, LinearAttention) for block in model.layers)


def test_relative_positions_are_all_that_tells_order():
    model = make("transformer_encoder", positions="relative").eval()
    x = tokens()
    turned = torch.cat([x[:, :1], x[:, 1:].flip(1)], 1)
    assert (model(x) - model(turned)).abs().max() > 1e-4
    for block in model.layers:
        torch.nn.init.zeros_(block.relative.weight)
    close(model(x), model(turned))


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("name", NAMES)
def test_promises_of_every_model_hold(name, style):
    model = make(name, **style)
    x = tokens()
    x[1, 7:] = 0
    logits = model(x)
    close(run_stages(model.stages(), x), logits)
    logits.square().sum().backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # A bias that all scores share changes no softmax.
    assert {n for n in silent if not n.endswith("k_proj.bias")} == set()
    model.eval()
    padded = torch.nn.functional.pad(x[:, :9], (0, 3))
    close(model(padded), model(x[:, :9]))
    saving = copy.deepcopy(model.train())
    saving.set_checkpointing(True)
    close(saving(x), logits)


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_no_token_of_a_language_model_sees_a_later_one(style):
    model = make("transformer_decoder", per_token=True, **style).eval()
    x = tokens()
    other = x.clone()
    other[:, 6:] = x[:, 6:] % (VOCABULARY - 1) + 1
    close(model(x)[:, :6], model(other)[:, :6])
    assert (model(x)[:, 6] - model(other)[:, 6]).abs().max() > 1e-6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow  # seconds each; of each family one is compiled in test_compiled.py
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NAMES)
def test_compiled_and_exported_it_is_the_same(name, style, tmp_path):
    import onnxruntime

    model, x = make(name, **STYLES[style]).float().eval(), tokens()
    expected = model(x).detach()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)
    torch.onnx.export(model, (x,), dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_window_must_reach_through_the_text_where_one_token_answers(name):
    make(name, attention="local", window=6)
    if name == "transformer_decoder":
        make(name, attention="local", window=1, per_token=True)
    with pytest.raises(ValueError, match=r"got 2 × 5 < 11; take window: 6, or attention: sparse"):
        make(name, attention="local", window=5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attention": "global"}, r"attention must be one of full, local, sparse, linear, but got"),
        ({"attention": "local", "window": 0}, "window must be a whole number >= 1, but got 0"),
        ({"attention": "local", "positions": "rotary"}, "rotary positions are of full attention"),
        ({"attention": "linear", "positions": "relative"}, "take learned or sinusoidal positions"),
    ],
)
def test_what_does_not_go_together_says_why(given, message):
    with pytest.raises(ValueError, match=message):
        make("transformer_encoder", **given)
