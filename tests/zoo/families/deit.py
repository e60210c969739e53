from tests.zoo.cases import Case, Numbers
from tests.zoo.families.vit import CALM, RANDOM, SLIM

CASES = [
    Case("deit_tiny_distilled_patch16", SLIM, random=RANDOM, calm=CALM, keeps_format=False),
    Case("deit_tiny_patch16", SLIM, random=RANDOM, calm=CALM, keeps_format=False),
]
# What the distilled ones put out in training, timm's do only when told: see test_deit.py.
NUMBERS = [Numbers("deit_tiny_patch16", CALM | {"patch": 16}, {"img_size": 64})]
