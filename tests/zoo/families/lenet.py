from tests.zoo.cases import Case

CASES = [Case("lenet5", {})]
NUMBERS = []
