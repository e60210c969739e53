from tests.zoo.cases import Case, Numbers

CASES = [Case("inception_v3", {"width": 0.125})]
# Below 299 pixels torchvision's auxiliary head finds too little; its numbers have their own test.
NUMBERS = [Numbers("inception_v3", {"dropout": 0.0, "aux": False}, {"aux_logits": False}, size=75)]
