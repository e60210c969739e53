from tests.zoo.cases import Case, Numbers

CASES = [Case("inception_v4", {"width": 0.125, "depth": 0.1})]
NUMBERS = [Numbers("inception_v4", size=75)]
