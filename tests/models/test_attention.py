"""Attention against its formulas, written out, and against torch's own layer."""

import copy
import math

import pytest
import torch
from torch import nn

from orchestrator.models.layers.alignment import AdditiveAttention, MultiplicativeAttention
from orchestrator.models.layers.attention import MultiHeadAttention, attend, past
from orchestrator.models.layers.linear_attention import LinearAttention
from orchestrator.models.layers.positions import RelativeBias, RotaryPositions
from orchestrator.models.layers.sparse_attention import (
    BlockSparseAttention,
    LocalAttention,
    strided_layout,
    window_layout,
)

N, T, S, D, H = 2, 7, 9, 12, 3
LAYOUT = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
LAYERS = {
    "full": lambda **options: MultiHeadAttention(D, H, **options),
    "local": lambda **options: LocalAttention(D, H, window=2, **options),
    "sparse": lambda **options: BlockSparseAttention(D, H, size=3, layout_BB=LAYOUT, **options),
    "linear": lambda **options: LinearAttention(D, H, size=3, **options),
}


def tokens(length=T, seed=1):
    shape, generator = (N, length, D), torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.double, generator=generator)


def layer(kind="full", **options):
    torch.manual_seed(0)
    made = LAYERS[kind](**options).double()
    for parameter in made.parameters():  # biases too
        nn.init.normal_(parameter, std=0.3)
    return made


def explicit(module, x, context=None, *, visible=None, bias=0.0):
    """Softmax attention of a layer's projections, one head after another."""
    context = x if context is None else context
    q, k, v = module.q_proj(x), module.k_proj(context), module.v_proj(context)
    heads = []
    for h in range(H):
        part = slice(h * D // H, (h + 1) * D // H)
        scores = torch.einsum("nte,nse->nts", q[..., part], k[..., part]) / math.sqrt(D // H)
        scores = scores + (bias[h] if torch.is_tensor(bias) else bias)
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        heads.append(torch.softmax(scores, -1).nan_to_num() @ v[..., part])
    return module.out_proj(torch.cat(heads, -1))


def seen_by(kind, causal):
    """Which keys each query sees, [T, T], from the definition of each layer."""
    visible = torch.zeros(T, T, dtype=torch.bool)
    for t in range(T):
        for s in range(T):
            allowed = {"full": True, "local": abs(t - s) <= 2, "sparse": LAYOUT[t // 3, s // 3]}
            visible[t, s] = allowed[kind] and (s <= t or not causal)
    return visible


def padding(length, lengths=(4, 6)):
    return torch.arange(length) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("kind", ["full", "local", "sparse"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_is_softmax_over_what_is_seen(kind, causal, masked):
    module, x, visible = layer(kind), tokens(), seen_by(kind, causal).expand(N, T, T)
    options = {}
    if masked:
        real = padding(T)
        visible = visible & real[:, None]
        options = {"mask_NTS": real[:, None]} if kind == "full" else {"mask_NT": real}
    found = module(x, causal=causal, **options)
    torch.testing.assert_close(found, explicit(module, x, visible=visible))


@pytest.mark.parametrize("everywhere", [1, 2, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_blocks_that_see_all(everywhere, causal):
    layout = window_layout(4, near=0, everywhere=everywhere)
    torch.manual_seed(0)
    module = BlockSparseAttention(D, H, size=2, layout_BB=layout).double()
    x, real = tokens(), padding(T)
    for length in (T, 3):
        seen = layout.repeat_interleave(2, 0).repeat_interleave(2, 1)[:length, :length]
        seen = seen.tril() if causal else seen
        visible = seen & real[:, None, :length]
        found = module(x[:, :length], causal=causal, mask_NT=real[:, :length])
        torch.testing.assert_close(found, explicit(module, x[:, :length], visible=visible))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("context", [False, True])
def test_is_torchs_multihead_attention(bias, causal, context):
    ours = layer(bias=bias)
    theirs = nn.MultiheadAttention(D, H, bias=bias, batch_first=True).double()
    names = ("q_proj", "k_proj", "v_proj")
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([getattr(ours, n).weight for n in names]))
        theirs.out_proj.weight.copy_(ours.out_proj.weight)
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([getattr(ours, n).bias for n in names]))
            theirs.out_proj.bias.copy_(ours.out_proj.bias)
    x = tokens()
    other = tokens(S, seed=2) if context else x
    real, hidden = padding(other.shape[1]), ~past(T, other.shape[1])
    expected, _ = theirs(
        x, other, other, key_padding_mask=~real, attn_mask=hidden if causal else None
    )
    mask = real[:, None]
    found = ours(x, other if context else None, causal=causal, mask_NTS=mask)
    torch.testing.assert_close(found, expected)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("masked", [False, True])
def test_a_bias_is_added_to_the_scores(masked):
    module, x, bias = layer(), tokens(), torch.randn(H, T, T, dtype=torch.double)
    visible = torch.rand(N, T, T, generator=torch.Generator().manual_seed(3)) > 0.4
    visible[:, 2] = False  # a query that sees nothing
    mask = visible if masked else None
    expected = explicit(module, x, visible=mask, bias=bias)
    torch.testing.assert_close(module(x, mask_NTS=mask, bias_HTS=bias), expected)
    if masked:
        torch.testing.assert_close(expected[:, 2], module.out_proj.bias.expand(N, D))


@pytest.mark.parametrize("causal", [False, True])
def test_a_scale_replaces_the_root_of_the_width(causal):
    q, k, v = (torch.randn(N, H, T, 4, dtype=torch.double) for _ in range(3))
    expected = attend(q * 0.1 * 2, k, v, causal=causal)  # √4
    torch.testing.assert_close(attend(q, k, v, causal=causal, scale=0.1), expected)


def test_a_mask_may_differ_from_head_to_head():
    q, k, v = (torch.randn(N, H, T, 4, dtype=torch.double) for _ in range(3))
    mask = torch.rand(N, H, T, T) > 0.5
    mask[..., 0] = True
    found = attend(q, k, v, mask_NTS=mask)
    for h in range(H):
        one = attend(q[:, h : h + 1], k[:, h : h + 1], v[:, h : h + 1], mask_NTS=mask[:, h])
        torch.testing.assert_close(found[:, h], one[:, 0])


@pytest.mark.parametrize("kind", LAYERS)
def test_causal_attention_never_sees_the_future_and_always_the_past(kind):
    module, x = layer(kind), tokens().requires_grad_()
    for t in range(T):
        (gradient,) = torch.autograd.grad(module(x, causal=True)[:, t].square().sum(), x)
        reached = gradient.abs().sum((0, 2)) > 0
        expected = seen_by("full" if kind == "linear" else kind, True)[t]
        assert torch.equal(reached, expected), t


@pytest.mark.parametrize("kind", LAYERS)
def test_padding_changes_no_other_token_and_gets_no_gradient(kind):
    module, x, real = layer(kind), tokens(), padding(T)
    options = {"full": {"mask_NTS": real[:, None]}, "linear": {"mask_NS": real}}.get(
        kind, {"mask_NT": real}
    )
    noisy = torch.where(real[..., None], x, 100 * torch.randn_like(x)).requires_grad_()
    found = module(noisy, **options)
    torch.testing.assert_close(found[real], module(x, **options)[real])
    (gradient,) = torch.autograd.grad(found[real].square().sum(), noisy)
    assert gradient.isfinite().all()
    assert not gradient[~real].any()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("causal", [False, True])
def test_training_differs_from_evaluation_by_dropout_alone(kind, causal):
    module, x = layer(kind), tokens()
    assert torch.equal(module.train()(x, causal=causal), module.eval()(x, causal=causal))
    if kind == "linear":
        return
    dropped = layer(kind, dropout=0.5)
    assert torch.equal(dropped.eval()(x, causal=causal), module(x, causal=causal))
    dropped.train()
    assert not torch.equal(dropped(x, causal=causal), dropped(x, causal=causal))


def test_dropout_zeroes_weights_and_keeps_their_mean():
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 1, 4000, 2), torch.zeros(1, 1, 4, 2), torch.ones(1, 1, 4, 2)
    found = attend(q, k, v, dropout=0.25)[0, 0, :, 0]
    # Four equal weights of 1/4, each kept with 3/4 and then divided by 3/4.
    counts = found * 3
    torch.testing.assert_close(counts, counts.round())
    variance = 4 * (1 / 4) ** 2 * (0.25 / 0.75)
    assert abs(found.mean().item() - 1) < 5 * math.sqrt(variance / 4000)


@pytest.mark.parametrize("kind", ["local", "sparse", "linear"])
@pytest.mark.parametrize("length", [1, 2, 5, 6])
def test_any_length_is_the_longer_ones_start(kind, length):
    module, x = layer(kind), tokens()
    whole = module(x, causal=True)[:, :length]
    torch.testing.assert_close(module(x[:, :length], causal=True), whole)


def test_the_last_queries_are_what_all_queries_give():
    module = layer(rotary=RotaryPositions())
    x = tokens()
    found = module(x[:, -2:], x, causal=True)
    torch.testing.assert_close(found, module(x, causal=True)[:, -2:])


def test_rotary_scores_depend_on_distance_alone():
    module = layer(rotary=RotaryPositions())
    x = tokens()
    q, k, v = module.project(x)
    expected = torch.zeros_like(v)
    for t in range(T):
        for h in range(H):
            scores = []
            for s in range(T):
                score = 0.0
                for i in range(2):
                    angle = (t - s) * 10_000 ** (-2 * i / 4)
                    a, b = q[:, h, t, 2 * i : 2 * i + 2], k[:, h, s, 2 * i : 2 * i + 2]
                    dot, cross = (a * b).sum(1), a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
                    score = score + dot * math.cos(angle) + cross * math.sin(angle)
                scores.append(score / 2)
            weights = torch.stack(scores, 1).softmax(1)
            expected[:, h, t] = torch.einsum("ns,nse->ne", weights, v[:, h])
    # Angles are computed in single precision.
    torch.testing.assert_close(module(x), module.join(expected), rtol=1e-5, atol=1e-5)


def test_relative_bias_fits_causal_attention():
    module, bias, x = layer(), RelativeBias(H, causal=True).double(), tokens()
    nn.init.normal_(bias.weight)
    whole = module(x, causal=True, bias_HTS=bias(T))
    expected = explicit(module, x, visible=past(T, T), bias=bias(T))
    torch.testing.assert_close(whole, expected)
    last = module(x[:, -2:], x, causal=True, bias_HTS=bias(2, T))
    torch.testing.assert_close(last, whole[:, -2:])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_linear_attention_is_a_kernel_instead_of_the_softmax(causal, masked):
    module, x = layer("linear"), tokens()
    q, k, v = module.project(x)
    q, k = torch.where(q > 0, q + 1, q.exp()), torch.where(k > 0, k + 1, k.exp())
    weights = torch.einsum("nhte,nhse->nhts", q, k)
    if causal:
        weights = weights * past(T, T)
    real = padding(T)
    if masked:
        weights = weights * real[:, None, None]
    expected = module.join(weights / weights.sum(-1, keepdim=True) @ v)
    found = module(x, causal=causal, mask_NS=real if masked else None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_linear_attention_across_to_a_context():
    module, x, context = layer("linear"), tokens(), tokens(S, seed=2)
    together = module(torch.cat([x, context], 1), mask_NS=torch.arange(T + S).expand(N, -1) >= T)
    torch.testing.assert_close(module(x, context), together[:, :T])
    with pytest.raises(ValueError, match="no context"):
        module(x, context, causal=True)


def test_layouts():
    window = window_layout(5, near=1, everywhere=1)
    expected = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 0, 1, 1, 1], [1, 0, 0, 1, 1]]
    assert window.long().tolist() == expected
    strided = strided_layout(6, 2)
    assert strided[5].long().tolist() == [0, 1, 0, 1, 1, 1]
    assert strided[0].long().tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("kind", ["local", "sparse"])
def test_a_token_that_sees_none_gets_the_bias_alone(kind):
    module, real = layer(kind), torch.zeros(N, T, dtype=torch.bool)
    real[:, 6] = True  # which the first tokens do not see, causal or not
    x = tokens().requires_grad_()
    found = module(x, mask_NT=real)
    alone = module.out_proj.bias.expand(N, D)
    torch.testing.assert_close(found[:, 3], alone)
    assert not torch.allclose(found[:, 6], alone)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert gradient.isfinite().all()


def test_sparse_attention_computes_with_no_more_keys_than_the_layout_has(monkeypatch):
    from orchestrator.models.layers import sparse_attention

    seen = []

    def spy(q, k, v, **options):
        seen.append((tuple(q.shape), tuple(k.shape)))
        return attend(q, k, v, **options)

    monkeypatch.setattr(sparse_attention, "attend", spy)
    x = torch.randn(N, 96, D)
    BlockSparseAttention(D, H, size=8, layout_BB=window_layout(12))(x)
    LocalAttention(D, H, window=8)(x)
    LocalAttention(D, H, window=8)(x, causal=True)
    queries = (N * 12, H, 8, D // H)
    assert seen == [(queries, (N * 12, H, keys, D // H)) for keys in (24, 24, 16)]
    seen.clear()
    BlockSparseAttention(D, H, size=8, layout_BB=window_layout(12, everywhere=1))(x)
    apart = (N, H, 8, D // H), (N, H, 96, D // H)
    assert seen == [(queries, (N * 12, H, 32, D // H)), apart]


SOURCES, QUERIES = 5, 4


def aligned(module, scores_of):
    """A layer's output and weights, and those of scores computed query by query."""
    query = torch.randn(N, T, QUERIES, dtype=torch.double)
    source = torch.randn(N, S, SOURCES, dtype=torch.double)
    real = padding(S)
    real[1] = False  # a sample without any source
    found, weights = module(query, source, mask_NTS=real[:, None])
    for n in range(N):
        for t in range(T):
            scores = torch.stack([scores_of(query[n, t], source[n, s]) for s in range(S)])
            expected = scores.masked_fill(~real[n], -torch.inf).softmax(0).nan_to_num()
            torch.testing.assert_close(weights[n, t], expected)
            torch.testing.assert_close(found[n, t], expected @ source[n])
    plain, plain_weights = module(query, source)
    all_seen = torch.ones(1, 1, S, dtype=torch.bool)
    torch.testing.assert_close(plain, module(query, source, mask_NTS=all_seen)[0])
    torch.testing.assert_close(plain_weights.sum(-1), torch.ones(N, T, dtype=torch.double))
    found.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in module.parameters())
    module.eval()
    assert torch.equal(module(query, source)[0], plain)


def test_additive_scores_are_bahdanaus():
    torch.manual_seed(0)
    module = AdditiveAttention(QUERIES, SOURCES, 3).double()
    w, u, v = module.query_proj.weight, module.source_proj.weight, module.score.weight[0]
    aligned(module, lambda q, h: v @ torch.tanh(w @ q + u @ h))


def test_general_scores_are_luongs():
    torch.manual_seed(0)
    module = MultiplicativeAttention(QUERIES, SOURCES).double()
    w = module.source_proj.weight
    aligned(module, lambda q, h: q @ w @ h)


def test_dot_scores_have_no_parameters():
    module = MultiplicativeAttention(SOURCES, SOURCES, score="dot")
    assert list(module.parameters()) == []
    query, source = torch.randn(N, T, SOURCES), torch.randn(N, S, SOURCES)
    found, weights = module(query, source)
    expected = torch.einsum("ntd,nsd->nts", query, source).softmax(-1)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(found, expected @ source)


def test_fresh_projections_are_glorots():
    torch.manual_seed(0)
    module = MultiHeadAttention(256, 4)
    for part in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
        bound = math.sqrt(6 / 512)
        assert bound * 0.99 < part.weight.abs().max().item() <= bound
        assert part.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert not part.bias.any()


@pytest.mark.parametrize("kind", LAYERS)
def test_compiles_and_runs_in_half_precision(kind):
    module, x = layer(kind).float(), tokens().float()
    expected = module(x, causal=True)
    compiled = torch.compile(copy.deepcopy(module), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, causal=True), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module(x, causal=True)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiHeadAttention(10, 4), r"heads must divide dim, but got \(dim=10, heads=4\)"),
        (lambda: MultiHeadAttention(8, 0), "heads must divide dim"),
        (lambda: MultiHeadAttention(8, 2, dropout=1.0), r"dropout must be in \[0, 1\)"),
        (lambda: LocalAttention(8, 2, window=0), "window must be at least 1 token, but got 0"),
        (lambda: LinearAttention(8, 2, size=0), "size must be at least 1 token, but got 0"),
        (
            lambda: BlockSparseAttention(8, 2, size=2, layout_BB=torch.ones(2, 3) > 0),
            r"layout_BB must be a square of booleans .*\(2, 3\) of torch.bool",
        ),
        (lambda: layer("sparse")(tokens(10)), "make a layout of at least 4 blocks"),
        (lambda: MultiplicativeAttention(3, 3, score="concat"), "concat is AdditiveAttention"),
        (lambda: MultiplicativeAttention(3, 4, score="dot"), r"\(query=3, source=4\)"),
        (lambda: layer()(tokens(), mask_NTS=torch.ones(N, 1, T)), "a mask must be boolean"),
        (lambda: layer()(tokens(), tokens(3), causal=True), r"\(queries=7, keys=3\)"),
    ],
)
def test_errors_say_the_rule_and_the_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
