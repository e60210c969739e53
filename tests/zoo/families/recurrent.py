from tests.zoo.cases import Case

_SLIM = {"embedding": 8, "hidden": 12, "layers": 2}
_RANDOM = {"dropout": 0.3, "recurrent_dropout": 0.3}
_CALM = {"dropout": 0.0, "recurrent_dropout": 0.0}


def _case(name, **more):
    return Case(name, _SLIM | more, random=_RANDOM, calm=_CALM, size=9, lr=1.0)


CASES = [
    _case("lstm", bidirectional=True),
    _case("gru", pool="mean"),
    _case("rnn", pool="max"),
    _case("bigru_attention"),
]
NUMBERS = []
