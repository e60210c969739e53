from tests.zoo.cases import Case, Numbers

CASES = [Case("inception_resnet_v2", {"width": 0.125, "depth": 0.05})]
NUMBERS = [Numbers("inception_resnet_v2", size=75)]
