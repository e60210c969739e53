from tests.zoo.cases import Case

_SLIM = {"dim": 16, "depth": 2, "heads": 2}
CASES = [
    Case("transformer_encoder", _SLIM, size=9, lr=0.5),
    Case("transformer_decoder", _SLIM, size=9, lr=0.5),
]
NUMBERS = []
