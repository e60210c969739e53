from tests.zoo.cases import Case, Numbers

CASES = [Case("shufflenet_v2_x0_5", {"width": 0.25})]
NUMBERS = [
    Numbers(name, ours={"dropout": 0.0, "stem": "imagenet"})
    for name in ("shufflenet_v2_x0_5", "shufflenet_v2_x2_0")
]
