from tests.zoo.cases import Case
from tests.zoo.families.bert import SLIM

CASES = [Case("transformer_decoder", SLIM, size=9, lr=0.5)]
NUMBERS = []
