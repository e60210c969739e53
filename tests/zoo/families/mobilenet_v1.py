from tests.zoo.cases import Case, Numbers

CASES = [Case("mobilenet_v1", {"width": 0.25})]
NUMBERS = [Numbers("mobilenet_v1", ours={"dropout": 0.0, "stem": "imagenet"})]
