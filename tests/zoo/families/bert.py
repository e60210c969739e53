from tests.zoo.cases import Case

SLIM = {"dim": 16, "depth": 2, "heads": 2}
CASES = [Case("transformer_encoder", SLIM | {"token_types": 2}, size=9, lr=0.5)]
NUMBERS = []
