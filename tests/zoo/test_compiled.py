"""Models that other programs run, torch's compiler and ONNX Runtime, give eager torch's numbers.

Eager torch is their reference: `test_references.py` compares it with other libraries' models. One
model of each kind is tested always; every other family and variant, and inductor, which writes and
compiles C++ for minutes, with the slow tests.
"""

import copy

import pytest
import torch

from orchestrator import models
from tests.zoo.cases import CASES, FIRST, VARIANTS
from tests.zoo.small import VOCABULARY, doubled, images, settle, slim

PAIR = "transformer"
"""The model that reads two texts; those with cases read one input."""
FAMILIES = [*FIRST, PAIR]
ALWAYS = ["resnet18", "efficientnet", "vit_tiny_patch16", "swin_tiny", "lstm", PAIR]
REST = [name for name in CASES | VARIANTS if name not in ALWAYS]
ALL = [*ALWAYS, *[pytest.param(name, marks=pytest.mark.slow) for name in REST]]
KNOWN = CASES | VARIANTS
LOST = pytest.mark.xfail(
    reason="torch 2.13's inductor reads a max pool's gradient before it is there: pytorch#185509",
    strict=True,
)
"""For models of which torch itself compiles a wrong backward pass, without a word; where the test
passes, torch has mended it."""


def subject(name: str, *, calm: bool = False):
    """A small model and what it is called with; `calm` ones draw no random numbers."""
    if name != PAIR:
        return slim(name, **(KNOWN[name].calm if calm else {})), (images(name),)
    torch.manual_seed(0)
    given = {"vocabulary": VOCABULARY, "length": (9, 7), "per_token": True}
    model = models.create_sequence_model(PAIR, num_classes=VOCABULARY, **given, dim=16, dropout=0.0)
    texts = [torch.randint(1, VOCABULARY, (4, length)) for length in (9, 7)]
    texts[0][1, 5:] = 0  # padding
    return model, tuple(texts)


def tensors(outputs) -> tuple[torch.Tensor, ...]:
    return (outputs,) if torch.is_tensor(outputs) else tuple(outputs)


def gradients(model, outputs):
    """Of one number that depends on every output, by parameter."""
    sum(output.square().mean() for output in tensors(outputs)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(eager, inputs, backend: str, *, tolerance: float) -> None:
    """One forward and backward pass in training mode, compiled as one graph and not compiled."""
    compiled = copy.deepcopy(eager)
    torch.compiler.reset()  # every model has the same `forward`, which is compiled 8 times at most
    found = torch.compile(compiled, backend=backend, fullgraph=True)(*inputs)
    expected = eager(*inputs)
    for ours, theirs in zip(tensors(found), tensors(expected), strict=True):
        assert error(ours, theirs) <= tolerance
    ours, theirs = gradients(compiled, found), gradients(eager, expected)
    assert ours.keys() == theirs.keys()
    largest = max(gradient.abs().max() for gradient in theirs.values())
    rounding = 8 * torch.finfo(largest.dtype).eps * largest
    for key, gradient in theirs.items():
        allowed = tolerance * gradient.abs().max() + rounding
        assert (ours[key] - gradient).abs().max() <= allowed, key
    for key, buffer in eager.named_buffers():  # statistics that the pass moved
        found = compiled.get_buffer(key)
        torch.testing.assert_close(found, buffer, rtol=10 * tolerance, atol=tolerance)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, in parts of the largest number."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", ALL)
def test_compiles_as_one_graph(name):
    assert_same_step(*subject(name, calm=True), "aot_eager", tolerance=1e-5)


@pytest.fixture(scope="module")
def fresh_kernels(tmp_path_factory):
    """Nothing that was compiled before is used, and nothing is left behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=LOST) if n == "alexnet" else n for n in FAMILIES]
)
def test_inductor_gives_the_same_step(name, fresh_kernels):
    """In double precision: inductor adds in another order than eager torch, and in single precision
    that is enough to turn a ReLU on, or another pixel of a pool, and moves gradients by percents.
    What a model computes in single precision always, its positions say, rounds otherwise still.
    """
    model, inputs = subject(name, calm=True)
    inputs = tuple(map(doubled, inputs))
    assert_same_step(model.double(), inputs, "inductor", tolerance=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ALL)
def test_onnx_gives_the_same_numbers(name, tmp_path):
    import onnxruntime

    model, inputs = subject(name)
    settle(model, *inputs)
    program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    named = zip(session.get_inputs(), inputs, strict=True)
    (found,) = session.run(None, {node.name: value.numpy() for node, value in named})
    expected = model(*inputs).detach()
    assert expected.std(dim=0).mean() > 1e-3 * expected.abs().max()  # the inputs decide
    # ONNX Runtime folds norms into convolutions, which rounds otherwise.
    assert error(torch.from_numpy(found), expected) <= 1e-4
