from tests.zoo.cases import Case, Numbers

CASES = [
    Case(
        "swin_tiny",
        {"patch": 7, "window": 2, "embed_dim": 32, "head_dim": 16, "depths": (2, 1)},
        random={"dropout": 0.3, "attention_dropout": 0.3, "drop_path": 0.3},
        calm={"drop_path": 0.0},
        keeps_format=False,
    )
]
# Maps of 16, 8, 4 and 2 patches a side, none of which windows of 7 divide.
NUMBERS = [Numbers("swin_tiny", {"patch": 4, "window": 7, "drop_path": 0.0})]
