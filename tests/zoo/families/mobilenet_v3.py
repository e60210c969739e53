from tests.zoo.cases import Case, Numbers

CASES = [
    Case("mobilenet_v3_small", {"width": 0.25}, lr=0.3),
    Case("mobilenet_v3_large", {"width": 0.25}, lr=0.2),
]
_OURS = {"dropout": 0.0, "stem": "imagenet"}
NUMBERS = [
    Numbers("mobilenet_v3_small", ours=_OURS, size=32),
    Numbers("mobilenet_v3_large", ours=_OURS, size=32),
]
