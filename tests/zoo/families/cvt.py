from tests.zoo.cases import Case

CASES = [
    Case(
        "cvt_13",
        {"head_dim": 8, "depths": (1, 1, 2)},
        # With the class token, the last block's convolution for queries has no effect.
        open={"pool": "mean"},
        random={"dropout": 0.3, "attention_dropout": 0.3, "drop_path": 0.3},
        calm={"drop_path": 0.0},
    )
]
NUMBERS = []
