from tests.zoo.cases import Case

CASES = [
    Case("vgg11_bn", {"width": 0.125, "hidden": 64}),
    Case("vgg11", {"width": 0.125, "hidden": 128}, lr=0.01),
]
# Whole classifiers of 120 million weights take seconds to draw; test_plain.py compares slim ones.
NUMBERS = []
