from tests.zoo.cases import Case

_SLIM = {
    "widths": (8, 16),
    "norm": "group",
    "kernels": "standardised",
    "activation": "prelu",
    "gate": "cbam",
    "residual": True,
    "dilation": 2,
}
CASES = [
    Case(
        "convnet",
        _SLIM,
        random={"dropout": 0.3, "dropout_kind": "dropblock"},
        calm={"dropout": 0.0},
        lr=0.2,
    )
]
NUMBERS = []
