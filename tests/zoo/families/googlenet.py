from tests.zoo.cases import Case, Numbers

_RANDOM = {"dropout": 0.3, "aux_dropout": 0.3}
_CALM = {"dropout": 0.0, "aux_dropout": 0.0}
CASES = [Case("googlenet", {"width": 0.125}, random=_RANDOM, calm=_CALM)]
NUMBERS = [Numbers("googlenet", ours=_CALM | {"stem": "imagenet"})]
