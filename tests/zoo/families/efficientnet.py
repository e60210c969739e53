from tests.zoo.cases import Case, Numbers

_RANDOM = {"dropout": 0.3, "drop_path": 0.3}
_CALM = {"dropout": 0.0, "drop_path": 0.0}
CASES = [
    Case("efficientnet", {"phi": -4.0}, random=_RANDOM, calm=_CALM, keeps_format=False),
    Case("efficientnet_b0", {"width": 0.25, "depth": 0.3}, random=_RANDOM, calm=_CALM),
    Case("efficientnet_small", {"width": 0.5}, random=_RANDOM, calm=_CALM),
]
NUMBERS = [Numbers("efficientnet_b0", ours=_CALM | {"stem": "imagenet"})]
