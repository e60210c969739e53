"""Models of texts: equal to torch's own layers, causal, and blind to padding."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from orchestrator import models
from orchestrator.models.layers.dropouts import time_mask
from orchestrator.models.layers.text_block import Block
from orchestrator.models.recurrent import RecurrentLayer
from orchestrator.models.sequence import last_real
from orchestrator.models.stages import run_stages

VOCABULARY, CAUSAL = 20, ["rnn", "lstm", "gru", "tcn", "transformer_decoder"]
EVERY = [*CAUSAL, "bigru_attention", "transformer_encoder"]
SMALL = {
    "rnn": {"embedding": 6, "hidden": 8, "layers": 2},
    "lstm": {"embedding": 6, "hidden": 8, "layers": 2},
    "gru": {"embedding": 6, "hidden": 8, "layers": 2},
    "bigru_attention": {"embedding": 6, "hidden": 8},
    "tcn": {"embedding": 6, "channels": 8, "levels": 2, "dropout": 0.0},
    "transformer_encoder": {"dim": 8, "depth": 2, "heads": 2, "dropout": 0.0},
    "transformer_decoder": {"dim": 8, "depth": 2, "heads": 2, "dropout": 0.0},
    "transformer": {"dim": 8, "depth": 2, "heads": 2, "dropout": 0.0},
}


def make(name, **given):
    torch.manual_seed(0)
    given = {"num_classes": 5, "vocabulary": VOCABULARY, "length": 10} | given
    return models.create_sequence_model(name, **SMALL[name] | given)


def pair(**given):
    asked = {"num_classes": VOCABULARY, "length": (7, 9), "per_token": True}
    return make("transformer", **asked | given)


def tokens(*shape):
    return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(1))


# --- against torch -------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "theirs"), [("rnn", nn.RNN), ("lstm", nn.LSTM), ("gru", nn.GRU)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_layers_are_torchs_also_where_texts_end_early(cell, theirs, bidirectional):
    torch.manual_seed(0)
    reference = theirs(6, 8, batch_first=True, bidirectional=bidirectional).double()
    ours = RecurrentLayer(cell, 6, 8, bidirectional, 0.0).double()
    ours.load_state_dict(reference.state_dict())
    x, lengths = torch.randn(3, 7, 6, dtype=torch.double), torch.tensor([7, 4, 1])
    real = torch.arange(7) < lengths[:, None]
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    expected, _ = nn.utils.rnn.pad_packed_sequence(reference(packed)[0], batch_first=True)
    found = ours(x, real.long())
    torch.testing.assert_close(found[real], expected[real], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("cell", "theirs"), [("rnn", nn.RNN), ("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_stacked_layers_are_torchs(cell, theirs):
    model = make(cell, layers=3, bidirectional=True).double()
    reference = theirs(6, 8, 3, batch_first=True, bidirectional=True).double()
    state = {
        f"{name}{number}{way}": layer.get_parameter(f"{name}0{way}")
        for number, layer in enumerate(model.layers)
        for name in ("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l")
        for way in ("", "_reverse")
    }
    reference.load_state_dict(state)
    x = tokens(2, 10)
    _, hidden = reference(model.embedding(x))
    hidden = hidden[0] if cell == "lstm" else hidden
    expected = model.head(torch.cat([hidden[-2], hidden[-1]], 1))
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_recurrent_dropout_is_one_mask_for_all_steps(cell):
    torch.manual_seed(0)
    layer = RecurrentLayer(cell, 6, 8, False, 0.5).double()
    x = torch.randn(3, 5, 6, dtype=torch.double)
    cells = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
    step = cells[cell](6, 8).double()
    step.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    torch.manual_seed(3)
    found = layer(x, torch.ones(3, 5))
    torch.manual_seed(3)
    kept = time_mask(torch.zeros(3, 1, 8, dtype=torch.double), 0.5)[:, 0]
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    hidden = state = torch.zeros(3, 8, dtype=torch.double)
    for time in range(5):
        if cell == "lstm":
            hidden, state = step(x[:, time], (hidden * kept, state))
        elif cell == "rnn":
            hidden = step(x[:, time], hidden * kept)
        else:  # the gates see the dropped state; what is kept of the state is not dropped
            new = step(x[:, time], hidden * kept)
            gate = _update_gate(step, x[:, time], hidden * kept)
            hidden = new + gate * (hidden - hidden * kept)
        torch.testing.assert_close(found[:, time], hidden, rtol=1e-10, atol=1e-10)
    layer.eval()
    torch.testing.assert_close(layer(x, torch.ones(3, 5)), _fused(layer, x))


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("training", [True, False])
def test_zoneout_keeps_units_as_the_paper_has_it(cell, training):
    torch.manual_seed(0)
    rates = (0.3, 0.5) if cell == "lstm" else (0.3, 0.0)
    layer = RecurrentLayer(cell, 6, 8, False, 0.0, rates).double().train(training)
    x = torch.randn(3, 5, 6, dtype=torch.double)
    cells = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
    step = cells[cell](6, 8).double()
    step.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    torch.manual_seed(3)
    found = layer(x, torch.ones(3, 5))
    torch.manual_seed(3)
    hidden = state = torch.zeros(3, 8, dtype=torch.double)
    for time in range(5):
        new = step(x[:, time], (hidden, state) if cell == "lstm" else hidden)
        new, cells_new = new if cell == "lstm" else (new, state)
        # Equation 5, and in evaluation the expectation of the masks.
        hidden = _zoned(new, hidden, rates[0], training)
        state = _zoned(cells_new, state, rates[1], training)
        torch.testing.assert_close(found[:, time], hidden, rtol=1e-10, atol=1e-10)


def _zoned(new, old, rate, training):
    if not rate:
        return new
    stays = torch.empty_like(new).bernoulli_(rate) if training else rate
    return stays * old + (1 - stays) * new


def _update_gate(step, x, hidden):
    gates = F.linear(x, step.weight_ih, step.bias_ih) + F.linear(
        hidden, step.weight_hh, step.bias_hh
    )
    return gates.chunk(3, -1)[1].sigmoid()


def _fused(layer, x):
    plain = copy.deepcopy(layer)
    plain.recurrent_dropout = 0.0
    return plain(x, torch.ones(x.shape[:2]))


def _theirs(state, cross=False):
    """Our block's tensors under the names of torch's layers."""
    renamed = {}
    attentions = [("self_attn", "self_attn")] + [("cross_attn", "multihead_attn")] * cross
    for ours, theirs in attentions:
        for kind, packed in (("weight", "in_proj_weight"), ("bias", "in_proj_bias")):
            parts = [state[f"{ours}.{one}_proj.{kind}"] for one in "qkv"]
            renamed[f"{theirs}.{packed}"] = torch.cat(parts)
            renamed[f"{theirs}.out_proj.{kind}"] = state[f"{ours}.out_proj.{kind}"]
    norms = {"norm1": "norm1", "norm2": "norm3" if cross else "norm2"}
    for ours, theirs in (norms | ({"cross_norm": "norm2"} if cross else {})).items():
        for kind in ("weight", "bias"):
            renamed[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
    same = ("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias")
    return renamed | {name: state[name] for name in same}


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_encoders_block_is_torchs(norm_first, activation):
    torch.manual_seed(0)
    block = Block(8, 2, 12, 0.0, norm_first=norm_first, activation=activation).double()
    _shake(block)
    given = {"activation": activation, "batch_first": True, "norm_first": norm_first}
    reference = nn.TransformerEncoderLayer(8, 2, 12, 0.0, **given).double()
    reference.load_state_dict(_theirs(block.state_dict()))
    x, real = torch.randn(3, 6, 8).double(), torch.arange(6) < torch.tensor([[6], [4], [1]])
    expected = reference(x, src_key_padding_mask=~real)
    torch.testing.assert_close(block(x, mask_NTS=real[:, None]), expected)
    mask = nn.Transformer.generate_square_subsequent_mask(6).double()
    expected = reference(x, src_mask=mask, is_causal=True)
    torch.testing.assert_close(block(x, causal=True), expected)


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_decoders_block_is_torchs(norm_first):
    torch.manual_seed(0)
    kind = {"norm_first": norm_first, "activation": "relu"}
    block = Block(8, 2, 12, 0.0, cross=True, **kind).double()
    _shake(block)
    given = {"batch_first": True, "norm_first": norm_first}
    reference = nn.TransformerDecoderLayer(8, 2, 12, 0.0, **given).double()
    reference.load_state_dict(_theirs(block.state_dict(), cross=True))
    x, source = torch.randn(3, 6, 8).double(), torch.randn(3, 4, 8).double()
    real = torch.arange(4) < torch.tensor([[4], [3], [1]])
    mask = nn.Transformer.generate_square_subsequent_mask(6).double()
    expected = reference(x, source, mask, memory_key_padding_mask=~real, tgt_is_causal=True)
    found = block(x, source, causal=True, mask_NTS=real[:, None])
    torch.testing.assert_close(found, expected)


def _shake(block):
    for parameter in block.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True])
def test_the_transformer_is_torchs(norm_first):
    model = pair(norm_first=norm_first, positions="sinusoidal").double()
    given = {"batch_first": True, "norm_first": norm_first}
    reference = nn.Transformer(8, 2, 2, 2, 32, 0.0, **given).double()
    state = {}
    for stack, cross in (("encoder", False), ("decoder", True)):
        for number, block in enumerate(getattr(model, stack)):
            renamed = _theirs(block.state_dict(), cross)
            state |= {f"{stack}.layers.{number}.{k}": v for k, v in renamed.items()}
        for kind in ("weight", "bias"):
            state[f"{stack}.norm.{kind}"] = model.state_dict()[f"{stack}_norm.{kind}"]
    reference.load_state_dict(state)
    source, target = tokens(3, 7), tokens(3, 9)
    source[1, 4:] = 0
    embed = [model.positions(model.tokens(t) * 8**0.5) for t in (source, target)]
    hidden = {"src_key_padding_mask": source == 0, "memory_key_padding_mask": source == 0}
    mask = nn.Transformer.generate_square_subsequent_mask(9).double()
    expected = reference(*embed, tgt_mask=mask, tgt_is_causal=True, **hidden)
    torch.testing.assert_close(model(source, target), expected @ model.tokens.weight.T)


def test_a_tcns_block_is_the_papers_formula():
    model = make("tcn", levels=2, kernel=3).double()
    x = torch.randn(2, 6, 10).double()
    block = model.network[0]  # dilation 1, and a 1×1 convolution as shortcut
    y = x
    for conv in (block.conv1, block.conv2):
        weight = conv.weight_g * conv.weight_v / conv.weight_v.flatten(1).norm(dim=1)[:, None, None]
        y = F.relu(F.conv1d(F.pad(y, (2, 0)), weight, conv.bias))
    expected = F.relu(y + F.conv1d(x, block.downsample.weight, block.downsample.bias))
    torch.testing.assert_close(block(x), expected)
    # A fresh weight is its direction times its norm: the normalisation changes nothing yet.
    torch.testing.assert_close(
        block.conv1.weight_g, block.conv1.weight_v.norm(dim=(1, 2))[:, None, None]
    )


# --- what every model promises -------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_no_token_depends_on_a_later_one(name):
    model = make(name, per_token=True).double()
    stages = model.stages()
    state = stages[0].fn(tokens(2, 10))
    entry = state[0].detach().requires_grad_()
    features = run_stages(stages[1:], (entry, state[1]))
    assert features.shape == (2, 10, 5)
    time_axis = 2 if name == "tcn" else 1
    for time in (0, 4, 9):
        (grad,) = torch.autograd.grad(features[:, time].sum(), entry, retain_graph=True)
        other = 1 if time_axis == 2 else 2
        reached = grad.abs().sum((0, other)) > 0
        assert not reached[time + 1 :].any()
        assert reached[time]
        if name != "tcn":
            assert reached[: time + 1].all()


def test_a_tcn_sees_its_receptive_field_and_no_more():
    model = make("tcn", levels=3, kernel=2, length=40, per_token=True).double()
    assert model.receptive_field == 1 + 2 * 1 * 7
    stages = model.stages()
    state = stages[0].fn(tokens(4, 40))
    entry = state[0].detach().requires_grad_()
    out = run_stages(stages[1:], (entry, state[1]))
    (grad,) = torch.autograd.grad(out[:, -1].square().sum(), entry)
    reached = (grad.abs().sum((0, 1)) > 0).nonzero()[:, 0]
    assert (reached.min().item(), reached.max().item()) == (40 - 15, 39)


def test_the_decoder_of_two_is_causal_and_sees_the_source():
    model = pair()
    source, target = tokens(2, 7), tokens(2, 9)
    changed = target.clone()
    changed[:, 5:] = 1 + changed[:, 5:] % (VOCABULARY - 1)
    out, other = model(source, target), model(source, changed)
    torch.testing.assert_close(out[:, :5], other[:, :5])
    assert not torch.allclose(out[:, 5:], other[:, 5:])
    assert not torch.allclose(out, model(1 + source % (VOCABULARY - 1), target))


@pytest.mark.parametrize("name", EVERY)
def test_padding_changes_nothing(name):
    model = make(name).double().eval()
    short = tokens(3, 6)
    padded = F.pad(short, (0, 4))
    torch.testing.assert_close(model(padded), model(short), rtol=1e-9, atol=1e-9)
    one = model(short[:1])
    torch.testing.assert_close(model(padded)[:1], one, rtol=1e-9, atol=1e-9)
    assert model(padded[:0]).shape == (0, 5)
    assert model(torch.zeros(2, 10, dtype=torch.long)).isfinite().all()


def test_padding_of_both_texts_changes_nothing():
    model = pair().double().eval()
    source, target = tokens(3, 4), tokens(3, 5)
    padded = model(F.pad(source, (0, 3)), F.pad(target, (0, 4)))
    torch.testing.assert_close(padded[:, :5], model(source, target), rtol=1e-9, atol=1e-9)


def test_the_last_real_token_is_found():
    x = torch.arange(12.0).view(2, 6, 1)
    found = last_real(x, torch.tensor([[3, 1, 4, 0, 0, 0], [2, 2, 2, 2, 2, 2]]))
    assert found.flatten().tolist() == [2.0, 11.0]


def test_pools_are_over_real_tokens():
    x = tokens(2, 10)
    x[0, 4:] = 0
    for pool in ("mean", "max"):
        model = make("gru", pool=pool)
        states = run_stages(model.stages()[:-2], x)[0]
        part = states[0, :4]
        expected = part.mean(0) if pool == "mean" else part.amax(0)
        found = model.forward_features(x)
        torch.testing.assert_close(found[0], expected)
        torch.testing.assert_close(
            found[1], getattr(states[1], pool if pool == "mean" else "amax")(0)
        )


def test_attention_pools_by_its_weights():
    model = make("bigru_attention").double()
    x = tokens(2, 10)
    x[0, 4:] = 0
    states = run_stages(model.stages()[:-2], x)[0][0, :4]
    weight = model.attention.context(torch.tanh(model.attention.proj(states))).softmax(0)
    torch.testing.assert_close(model.forward_features(x)[0], (weight * states).sum(0))


@pytest.mark.parametrize("name", CAUSAL)
def test_a_language_model_answers_each_token(name):
    model = make(name, per_token=True, num_classes=VOCABULARY)
    logits = model(tokens(2, 10))
    assert logits.shape == (2, 10, VOCABULARY)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens(2, 10).flatten())
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_the_transformers_stages_are_its_forward_and_every_parameter_learns():
    model = pair(tied=False, positions="learned")
    source, target = tokens(3, 7), tokens(3, 9)
    out = model(source, target)
    assert out.shape == (3, 9, VOCABULARY)
    state = (source, target)
    for stage in model.stages():
        state = stage.fn(state)
    assert torch.equal(state, out)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    held = [id(p) for stage in model.stages() for p in stage.parameters()]
    assert sorted(held) == sorted(map(id, model.parameters()))
    assert [model.stages()[0].name, model.stages()[-1].name] == ["stem", "head"]


@pytest.mark.parametrize("name", ["transformer_decoder", "transformer"])
def test_a_tied_head_is_the_embedding_and_is_kept_once(name):
    given = {"num_classes": VOCABULARY, "per_token": True, "tied": True}
    model = pair() if name == "transformer" else make(name, **given)
    assert not any(key.startswith("head") for key in model.state_dict())
    features = model.forward_features(tokens(2, 10)) if name != "transformer" else None
    if features is not None:
        torch.testing.assert_close(model(tokens(2, 10)), features @ model.tokens.weight.T)
    with pytest.raises(ValueError, match="tied head is the embedding"):
        model.reset_head(3)
    with pytest.raises(ValueError, match=r"answers must be tokens.*7 classes and 20 tokens"):
        (pair if name == "transformer" else lambda **k: make(name, **given | k))(num_classes=7)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "relative"])
def test_order_matters_with_any_positions(positions):
    model = make("transformer_encoder", positions=positions, dim=16).double()
    x = tokens(1, 8)
    swapped = x[:, [0, 2, 1, 3, 4, 5, 6, 7]]
    assert not torch.allclose(model(x), model(swapped), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("lstm", {"bidirectional": True, "per_token": True}, "set bidirectional: false"),
        ("transformer_encoder", {"per_token": True}, "take a causal network"),
        ("lstm", {"length": (5, 6)}, "reads one sequence, but the data has 2"),
        ("transformer", {}, "the data must have both, but it has sequences of length 10"),
        ("transformer_encoder", {"heads": 3}, r"heads must divide dim.*dim=8, heads=3"),
        ("gru", {"hidden": 0}, "hidden must be a whole number >= 1, but got 0"),
        ("gru", {"dropout": 1.0}, r"dropout must be in \[0, 1\), but got 1.0"),
        ("gru", {"pool": "sum"}, "pool must be last, mean, max or attention, but got 'sum'"),
        ("gru", {"zoneout_cell": 0.1}, "an LSTM's cell, which a gru does not have, but got 0.1"),
        ("lstm", {"zoneout": 1.0}, r"zoneout must be in \[0, 1\), but got 1.0"),
        ("tcn", {"kernel": 1}, "kernel must be a whole number >= 2, but got 1"),
        ("gru", {"vocabulary": 1}, "vocabulary must be a whole number >= 2, but got 1"),
        ("gru", {"widht": 1}, "gru has no option 'widht'"),
    ],
)
def test_what_can_not_be_built_says_why(name, given, message):
    with pytest.raises(ValueError, match=message):
        make(name, **given)


def test_images_and_texts_are_not_mixed_up():
    with pytest.raises(ValueError, match="lstm reads tokens, not images"):
        models.create("lstm", num_classes=2, in_channels=1, image_size=28)
    with pytest.raises(ValueError, match="resnet18 reads images, not tokens"):
        models.create_sequence_model("resnet18", num_classes=2, vocabulary=9, length=5)


def test_too_long_a_text_is_refused_where_positions_are_learnt():
    with pytest.raises(ValueError, match=r"learned positions for 10 tokens.*reaches 11"):
        make("transformer_decoder")(tokens(1, 11))
