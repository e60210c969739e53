"""Grad-CAM against its equations by hand, a second implementation, and every network there is."""

from __future__ import annotations

import asyncio

import pytest
import torch
from torch import nn

from orchestrator.analysis.grad_cam import NoMapError, grad_cam
from orchestrator.serve.backend import NoAnswerError
from orchestrator.serve.monitor.reference import Reference
from orchestrator.serve.predictor import EnsemblePredictor, load_predictor
from tests.serve.serving import SHAPE, make_ensemble, make_run, make_text_run
from tests.zoo.small import IMAGES, images, slim

LABELS = torch.tensor([0, 1, 2, 3])


class Pooled(nn.Module):
    """One convolution, global average pooling and a linear layer, so that Grad-CAM is known."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 2, stride=2)
        self.act = nn.ReLU(inplace=in_place)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_with_average_pooling_the_weights_are_the_linear_layers(in_place, size):
    torch.manual_seed(0)
    network, x = Pooled(in_place), torch.randn(4, 1, *size)
    map_NCHW = network.conv(x).relu()
    # ∂y/∂A is w/Z everywhere, so equation 2 is ReLU(Σ w·A)/Z, and Z goes with the scaling.
    small = torch.einsum("nk,nkhw->nhw", network.fc.weight[LABELS], map_NCHW).relu()
    large = nn.functional.interpolate(small[:, None], size, mode="bilinear", align_corners=False)
    large = large[:, 0].detach()
    expected = large / large.amax((1, 2), keepdim=True).clamp_min(1e-12)
    assert large.amax() > 0
    assert torch.allclose(grad_cam(network, x, LABELS), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4.1"),
        ("mobilenet_v2", "features.18"),
        ("shufflenet_v2_x0_5", "conv5"),
        ("inception_v3", "Mixed_7c"),
    ],
)
def test_a_second_implementation_agrees(name, layer):
    attr = pytest.importorskip("captum.attr")
    network, x = slim(name).eval(), images(name)
    other = attr.LayerGradCam(network, network.get_submodule(layer))
    small = other.attribute(x, target=LABELS, relu_attributions=True)
    large = nn.functional.interpolate(small, x.shape[2:], mode="bilinear", align_corners=False)
    large = large[:, 0].detach()
    top = large.amax((1, 2), keepdim=True)
    expected = torch.where(top > 0, large / top, torch.zeros_like(large))
    assert torch.allclose(grad_cam(network, x, LABELS), expected, atol=1e-5)


@pytest.mark.parametrize("name", IMAGES)
def test_every_network_with_a_map_is_explained(name):
    network, x = slim(name).eval(), images(name)
    if name == "mlp":
        with pytest.raises(NoMapError, match="MLP has no map"):
            grad_cam(network, x, LABELS)
        return
    with torch.no_grad():
        before = network(x)
    heat = grad_cam(network, x, LABELS)
    assert heat.shape == (4, *x.shape[2:]) and heat.dtype == torch.float32
    tops = heat.amax((1, 2))
    assert ((heat >= 0) & (heat <= 1)).all()
    assert ((tops == 0) | (tops == 1)).all() and (tops == 1).any()
    # Nothing is left behind: neither gradients nor another answer.
    assert all(parameter.grad is None for parameter in network.parameters())
    with torch.no_grad():
        assert torch.equal(network(x), before)


def test_images_of_a_batch_do_not_change_each_other():
    network, x = slim("resnet18").eval(), images("resnet18")
    together = grad_cam(network, x, LABELS)
    alone = torch.cat([grad_cam(network, x[n : n + 1], LABELS[n : n + 1]) for n in range(4)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_an_image_that_is_not_square():
    torch.manual_seed(0)
    network = slim("resnet18").eval()
    assert grad_cam(network, torch.randn(2, 1, 24, 40), LABELS[:2]).shape == (2, 24, 40)


# --- what is served --------------------------------------------------------------------------


def test_an_ensemble_has_its_members_weighted_mean(tmp_path):
    one, two = make_run(tmp_path / "one", seed=1), make_run(tmp_path / "two", seed=2)
    ensemble = load_predictor(make_ensemble(tmp_path / "both", [one, two], [0.75, 0.25]))
    assert isinstance(ensemble, EnsemblePredictor)
    pixels = torch.rand(SHAPE, generator=torch.Generator().manual_seed(3))
    for label in range(3):
        maps = [load_predictor(root).explain(pixels, label) for root in (one, two)]
        mean = 0.75 * maps[0] + 0.25 * maps[1]
        expected = mean / mean.max() if mean.max() > 0 else mean
        assert torch.allclose(ensemble.explain(pixels, label), expected, atol=1e-6)


def test_bytes_and_numbers_are_explained_alike(tmp_path):
    reference = Reference(make_run(tmp_path / "run"))
    pixels = torch.randint(0, 256, SHAPE, dtype=torch.uint8).numpy()
    unit = pixels.astype("float32") / 255
    from_bytes = asyncio.run(reference.explain(pixels, 1))
    assert (from_bytes == asyncio.run(reference.explain(unit, 1))).all()
    expected = load_predictor(tmp_path / "run").explain(torch.from_numpy(unit), 1)
    assert torch.allclose(torch.from_numpy(from_bytes), expected, atol=1e-6)


def test_only_a_few_explanations_wait(tmp_path):
    reference = Reference(make_run(tmp_path / "run"))
    pixels = torch.rand(SHAPE).numpy()

    async def six() -> list[object]:
        calls = [reference.explain(pixels, 0) for _ in range(6)]
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(six())
    refused = [one for one in found if isinstance(one, NoAnswerError)]
    assert [one.status for one in refused] == [429, 429]
    assert asyncio.run(reference.explain(pixels, 0)).shape == SHAPE[1:]


def test_what_has_no_map_is_the_clients_fault(tmp_path):
    pixels = torch.rand(SHAPE).numpy()
    flat = make_run(tmp_path / "flat", model={"type": "mlp", "hidden": [8]})
    for root, message in ((flat, "no map of places"), (make_text_run(tmp_path / "t"), "images")):
        with pytest.raises(NoAnswerError, match=message) as caught:
            asyncio.run(Reference(root).explain(pixels, 0))
        assert caught.value.status == 400
