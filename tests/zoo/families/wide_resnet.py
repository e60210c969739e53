from tests.zoo.cases import Case, Numbers

CASES = [
    Case("wrn_28_10", {"width": 0.05}, lr=0.1),
    Case("wide_resnet50_2", {"width": 0.125}, open={"zero_init": False}),
]
NUMBERS = [Numbers("wide_resnet50_2", ours={"dropout": 0.0, "stem": "imagenet"})]
