from tests.zoo.cases import Case, Numbers

CASES = [Case("densenet121", {"width": 0.125, "depth": 0.1})]
NUMBERS = [Numbers("densenet121", ours={"dropout": 0.0, "stem": "imagenet"})]
