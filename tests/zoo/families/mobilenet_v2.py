from tests.zoo.cases import Case, Numbers

CASES = [Case("mobilenet_v2", {"width": 0.25})]
NUMBERS = [Numbers("mobilenet_v2", ours={"dropout": 0.0, "stem": "imagenet"})]
