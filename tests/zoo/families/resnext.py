from tests.zoo.cases import Case, Numbers

CASES = [Case("resnext50_32x4d", {"width": 0.125}, open={"zero_init": False})]
NUMBERS = [Numbers("resnext50_32x4d", ours={"dropout": 0.0, "stem": "imagenet"})]
