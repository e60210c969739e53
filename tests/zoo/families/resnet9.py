from tests.zoo.cases import Case

CASES = [Case("resnet9", {"width": 0.5})]
NUMBERS = []
