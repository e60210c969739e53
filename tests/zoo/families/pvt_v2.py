from tests.zoo.cases import Case, Numbers

CASES = [
    Case(
        "pvt_v2_b0",
        {"head_dim": 8, "depths": (2, 1, 1, 1)},
        random={"dropout": 0.3, "drop_path": 0.3},
        calm={"drop_path": 0.0},
    )
]
NUMBERS = [Numbers("pvt_v2_b0", {"stem": "imagenet", "drop_path": 0.0})]
