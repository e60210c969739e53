from tests.zoo.cases import Case

CASES = [Case("mlp", {"hidden": (64, 32)}, keeps_format=False)]
NUMBERS = []
