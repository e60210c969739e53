from tests.zoo.cases import Case

CASES = [Case("inception_v2", {"width": 0.125})]
NUMBERS = []
