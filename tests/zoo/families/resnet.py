from tests.zoo.cases import Case, Numbers

# Blocks whose last norm starts at zero hide what is before it.
_OPEN = {"zero_init": False}
CASES = [
    Case("resnet18", {"width": 0.125}, open=_OPEN),
    Case("resnet50", {"width": 0.125}, open=_OPEN),
]
_OURS = {"dropout": 0.0, "stem": "imagenet"}
NUMBERS = [Numbers("resnet18", ours=_OURS), Numbers("resnet50", ours=_OURS)]
