from tests.zoo.cases import Case, Numbers

# Few patches and wide tokens: with many, the class token of a fresh network hardly sees the image.
SLIM = {"embed_dim": 64, "depth": 2, "heads": 2, "patch": 14}
RANDOM = {"dropout": 0.3, "attention_dropout": 0.3, "drop_path": 0.3}
CALM = {"drop_path": 0.0}
CASES = [Case("vit_tiny_patch16", SLIM, random=RANDOM, calm=CALM, keeps_format=False)]
NUMBERS = [
    Numbers("vit_tiny_patch16", ours={"patch": 16}, theirs={"img_size": 64}),
]
