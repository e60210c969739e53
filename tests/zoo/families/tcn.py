from tests.zoo.cases import Case

CASES = [Case("tcn", {"embedding": 8, "channels": 12, "levels": 2}, size=9, lr=0.5)]
NUMBERS = []
