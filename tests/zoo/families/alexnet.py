from tests.zoo.cases import Case, Numbers

CASES = [Case("alexnet", {"width": 0.125, "hidden": 64}, lr=0.02)]
NUMBERS = [Numbers("alexnet", ours={"dropout": 0.0, "stem": "imagenet"})]
