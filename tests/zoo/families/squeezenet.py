from tests.zoo.cases import Case, Numbers

CASES = [
    Case("squeezenet1_1", {"width": 0.25}),
    Case("squeezenet1_0", {"width": 0.25}),
]
_OURS = {"dropout": 0.0, "stem": "imagenet"}
# Small images: the fewer pixels the head averages, the more its logits differ.
NUMBERS = [Numbers(name, ours=_OURS, size=24) for name in ("squeezenet1_0", "squeezenet1_1")]
