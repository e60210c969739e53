from tests.zoo.cases import Case, Numbers

# Blocks whose last norm starts at zero hide what is before it.
_OPEN = {"zero_init": False}
CASES = [
    Case("seresnet18", {"width": 0.125}, open=_OPEN, lr=0.2),
    Case("seresnet50", {"width": 0.125}, open=_OPEN),
]
_OURS = {"dropout": 0.0, "stem": "imagenet"}
NUMBERS = [Numbers("seresnet18", ours=_OURS), Numbers("seresnet50", ours=_OURS)]
