"""Texts: tokens and back, rows and windows, the vocabulary of a split, the sources, the loader."""

import csv
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.data import Csv, DataConfig, SplitConfig, TextFolder, TokenizerConfig
from orchestrator.data import memory
from orchestrator.data.cache import open_source
from orchestrator.data.memory import build_loader, load_data
from orchestrator.data.text.rows import build_lexicon, rows, windows
from orchestrator.data.text.tokenizer import (
    BEGIN,
    END,
    PAD,
    SPECIAL,
    UNKNOWN,
    Tokenizer,
)
from orchestrator.errors import ConfigError, DataError
from orchestrator.host import SingleWorker

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    ",",
    "and",
    "then",
    "the",
    "dog",
    "sat",
    "on",
    "the",
    "cat",
    ".",
]


def learn(*texts, **config):
    return build_lexicon(TokenizerConfig(**config), texts).tokenizer


@given(st.text())
def test_characters_come_back_as_they_were(text):
    import unicodedata

    tokenizer = learn(text, level="character")
    clean = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    assert tokenizer.decode(tokenizer.encode(text)) == clean
    assert len(tokenizer.encode(text)) == len(clean)


@given(st.text(), st.text())
def test_words_come_back_and_hold_no_white_space(text, other):
    tokenizer = learn(text, other, level="word")
    words = tokenizer.decode(tokenizer.encode(text))
    assert words == " ".join(tokenizer.tokens(text))
    assert tokenizer.encode(words) == tokenizer.encode(text)
    assert UNKNOWN not in tokenizer.encode(text)
    assert not any(token.isspace() or not token for token in tokenizer.vocabulary)


def test_words_and_marks_are_tokens():
    tokenizer = learn("don't stop: 3.5 km_h", level="word")
    assert tokenizer.tokens("don't stop: 3.5 km_h") == [
        "don",
        "'",
        "t",
        "stop",
        ":",
        "3",
        ".",
        "5",
        "km_h",
    ]


def test_case_is_folded_where_asked_and_forms_of_one_letter_are_one():
    assert learn("Ab").encode("ab") == [UNKNOWN]
    assert learn("Ab", lowercase=True).decode(learn("Ab", lowercase=True).encode("aB")) == "ab"
    assert learn("é").encode("é") == learn("é").encode("é") != [UNKNOWN]


def test_special_tokens_that_are_written_out_are_text():
    tokenizer = learn("<pad> x", level="word")
    assert tokenizer.tokens("<pad>") == ["<", "pad", ">"]
    assert PAD not in tokenizer.encode("<pad>")


def test_a_tokenizer_survives_its_file():
    tokenizer = learn("Übung macht 日本", lowercase=True)
    again = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again == tokenizer
    with pytest.raises(ValueError, match="begin with <pad> <unk> <bos> <eos>"):
        Tokenizer("word", False, ("a", "b"))


def test_rows_begin_end_and_are_filled_or_cut():
    tokenizer = learn("a b c d e", level="word")
    a, b, c, d, _ = tokenizer.encode("a b c d e")
    found = rows(tokenizer, ["a b", "a b c d e", ""], 6)
    assert found.tokens.tolist() == [
        [BEGIN, a, b, END, PAD, PAD],
        [BEGIN, a, b, c, d, END],
        [BEGIN, END, PAD, PAD, PAD, PAD],
    ]
    assert found.cut == 1


def test_windows_are_the_text_and_the_text_one_on():
    tokenizer = learn("abcdefg", level="character")
    found = windows(tokenizer, ["abc", "defg"], 4)
    stream = [*tokenizer.encode("abc"), END, *tokenizer.encode("defg"), END]
    assert found.inputs["tokens"].tolist() == [stream[0:4], stream[4:8]]
    assert found.targets["label"].tolist() == [stream[1:5], stream[5:9]]
    with pytest.raises(DataError, match="needs a text of at least 10 tokens, but there are 9"):
        windows(tokenizer, ["abc", "defg"], 9)


# --- sources -------------------------------------------------------------------------------------


def table(path, columns, found):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(found)
    return path


def labelled(path, count=60):
    found = [(f"{WORDS[n % 7]} {WORDS[n % 5]} x{n}", "ab"[n % 2]) for n in range(count)]
    return table(path, ("text", "label"), found)


def load(source, **split):
    memory._memory.clear()
    return load_data(DataConfig(source=source, split=SplitConfig(**split)))


def texts_of(data, split):
    samples, ids = data.split(split)
    return [data.info.tokenizer.decode(data.numbers[row]) for row in samples.inputs["tokens"][ids]]


def test_class_folders_are_labels(tmp_path):
    for split, count in (("train", 10), ("test", 3)):
        for name in ("ant", "bee"):
            (tmp_path / split / name / "deep").mkdir(parents=True)
            for n in range(count):
                file = tmp_path / split / name / "deep" / f"{n}.txt"
                file.write_text(f"\ufeffsome {name} {n}", encoding="utf-8")
    data = load(TextFolder(path=str(tmp_path), length=8), val=0.2, select=0)
    assert data.info.label_names == ("ant", "bee")
    assert data.info.answers == "label"
    assert data.info.shape == (8,)
    assert data.info.sizes == {"train": 16, "val": 4, "select": 0, "test": 6}
    samples, ids = data.split("train")
    for text, label in zip(texts_of(data, "train"), samples.targets["label"][ids], strict=True):
        assert text.startswith(f"some {data.info.label_names[label]}")
    assert np.bincount(samples.targets["label"][data.ids["val"]]).tolist() == [2, 2]


def test_files_in_the_folder_are_a_running_text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "b.txt").write_text("klmnopqrst")
    (folder / "a.txt").write_text("abcdefghij")
    config = TextFolder(path=str(folder), length=4, tokenizer={"level": "character"})
    data = open_source(config).data
    assert data.label_names == ()
    assert (
        data.lexicon.tokenizer.decode(data.train.inputs["tokens"].ravel()) == "abcdefghijklmnopqrs"
    )
    info = load(config, val=0.2, select=0).info
    assert (info.answers, info.shape, info.classes) == ("next token", (4,), 0)


def test_a_table_of_labels_and_one_of_answers(tmp_path):
    data = load(Csv(path=str(labelled(tmp_path / "a.csv")), label="label", length=6))
    assert (data.info.label_names, data.info.answers) == (("a", "b"), "label")
    pairs = [(f"in {n}", f"out of {n}") for n in range(40)]
    path = table(tmp_path / "b.csv", ("text", "reply"), pairs)
    data = load(Csv(path=str(path), target="reply", length=6, target_length=5), val=0.1, select=0)
    assert (data.info.answers, data.info.shape) == ("text", (6, 5))
    loader = loader_of(data, path, target="reply", length=6, target_length=5)
    (batch,) = loader.evaluate("val")
    decode = data.info.tokenizer.decode
    for source, given_to, label in zip(
        batch.inputs["tokens"], batch.inputs["target_tokens"], batch.targets["label"], strict=True
    ):
        assert decode(given_to) == decode(label)
        assert (given_to[0], label[3]) == (BEGIN, END)
        assert torch.equal(given_to[1:4], label[:3])
        assert label[4] == PAD
        assert decode(source).split()[0] == "in"


def loader_of(data, path, **options):
    config = DataConfig(source=Csv(path=str(path), **options), split=SplitConfig(val=0.1, select=0))
    return build_loader(
        config.loader,
        data=config,
        seed=1,
        batch_size=8,
        micro_batch=None,
        worker=SingleWorker("cpu"),
    )


def test_labels_that_are_numbers_go_by_size(tmp_path):
    path = table(tmp_path / "a.csv", ("text", "y"), [(f"t{n}", n % 11) for n in range(22)])
    data = open_source(Csv(path=str(path), label="y")).data
    assert data.label_names == tuple(map(str, range(11)))


def test_the_official_test_table_and_texts_that_lose_their_end(tmp_path):
    labelled(tmp_path / "train.csv")
    labelled(tmp_path / "test.csv", 10)
    data = open_source(Csv(path=str(tmp_path), label="label", length=4)).data
    assert len(data.test) == 10
    assert data.notes == (
        "train: 60 of 60 texts have more than 2 tokens and lost their end; "
        "raise data.source.length to keep it",
        "test: 10 of 10 texts have more than 2 tokens and lost their end; "
        "raise data.source.length to keep it",
    )


def _mistakes(tmp_path):
    empty, mixed, latin, bare = (tmp_path / name for name in ("empty", "mixed", "latin", "bare"))
    for folder in (empty, mixed / "ant", latin, bare / "ant", bare / "bee"):
        folder.mkdir(parents=True)
    (mixed / "a.txt").write_text("x")
    (latin / "a.txt").write_bytes("über".encode("latin-1"))
    (bare / "ant" / "a.txt").write_text("x")
    yield TextFolder(path=str(tmp_path / "none")), "is not a folder"
    yield TextFolder(path=str(empty)), "neither .*txt files nor class folders"
    yield TextFolder(path=str(mixed)), "either .*but has a.txt and the folder ant"
    yield TextFolder(path=str(latin)), "a.txt is not UTF-8 .*at byte 0"
    yield TextFolder(path=str(bare)), "class folder .*bee has no text"
    yield Csv(path=str(tmp_path / "none.csv"), label="y"), "there is no table"
    path = table(tmp_path / "a.csv", ("text", "y"), [("t", "a"), ("u", "")])
    yield Csv(path=str(path), label="z"), "no column 'z'; it has: text, y. Set data.source.text"
    yield Csv(path=str(path), label="y"), "line 3: there is no 'y'"
    path = table(tmp_path / "b.csv", ("text", "y"), [("t", "a"), ("u", "a")])
    yield Csv(path=str(path), label="y"), "at least two classes"
    path = table(tmp_path / "c.csv", ("text", "y"), [])
    yield Csv(path=str(path), label="y"), "has no rows"
    (tmp_path / "d.csv").write_text("")
    yield Csv(path=str(tmp_path / "d.csv"), label="y"), "d.csv is empty; its first line must name"
    path = table(tmp_path / "e.csv", ("y", "text"), [("a", "t"), ("b",)])
    yield Csv(path=str(path), label="y"), "line 3: there is no 'text'; mend or remove the row"
    (tmp_path / "both").mkdir()
    table(tmp_path / "both" / "train.csv", ("text", "y"), [("t", "a"), ("u", "b")])
    table(tmp_path / "both" / "test.csv", ("text", "y"), [("t", "c")])
    yield Csv(path=str(tmp_path / "both"), label="y"), "label 'c' of test.csv is not among"


def test_what_can_not_be_read_says_why(tmp_path):
    for config, message in _mistakes(tmp_path):
        with pytest.raises(DataError, match=message):
            open_source(config)


# --- the vocabulary ------------------------------------------------------------------------------


def test_only_the_train_split_is_known_whatever_the_split(tmp_path):
    path = str(labelled(tmp_path / "a.csv"))
    for seed in (0, 1):
        data = load(Csv(path=path, label="label", length=8), val=0.2, select=0.1, seed=seed)
        train = {word for text in texts_of(data, "train") for word in text.split()}
        assert train == {*data.info.tokenizer.vocabulary} - {*SPECIAL}
        held = data.train.inputs["tokens"][data.ids["val"]]
        # Each row has a word of its own, which no other row can have taught.
        assert (data.numbers[held] == UNKNOWN).sum(1).min() == 1


def test_rare_and_surplus_words_are_unknown_and_frequent_ones_come_first(tmp_path):
    found = [(f"a a a b b c{n}", "xy"[n % 2]) for n in range(30)]
    path = table(tmp_path / "a.csv", ("text", "label"), found)
    tokenizer = {"min_count": 2}
    info = load(Csv(path=str(path), label="label", tokenizer=tokenizer), select=0).info
    assert info.tokenizer.vocabulary == (*SPECIAL, "a", "b")
    info = load(Csv(path=str(path), label="label", tokenizer={"max_size": 5}), select=0).info
    assert info.tokenizer.vocabulary == (*SPECIAL, "a")


def test_the_same_numbers_from_the_cache(tmp_path):
    config = Csv(path=str(labelled(tmp_path / "a.csv")), label="label", length=8)
    first, again = load(config), load(config)
    assert first.info == again.info
    assert np.array_equal(first.numbers, again.numbers)
    assert list(tmp_path.glob("cache/sources/csv-*/vocabulary-*.json"))


def test_other_words_are_other_data(tmp_path):
    digests = set()
    for word in ("red", "tan"):
        path = table(tmp_path / f"{word}.csv", ("text", "label"), [(word, "a"), ("zoo", "b")])
        found = open_source(Csv(path=str(path), label="label"))
        digests.add(found.digest)
    assert len(digests) == 2


# --- the loader ----------------------------------------------------------------------------------


def test_batches_hold_the_vocabularys_numbers_and_each_sample_once(tmp_path):
    path = labelled(tmp_path / "a.csv")
    loader = loader_of(None, path, label="label", length=8)
    data = load_data(
        DataConfig(
            source=Csv(path=str(path), label="label", length=8),
            split=SplitConfig(val=0.1, select=0),
        )
    )
    seen = []
    for step in loader.train(0):
        for batch in step.micro_batches:
            assert batch.inputs["tokens"].dtype == batch.targets["label"].dtype == torch.int64
            assert int(batch.inputs["tokens"].max()) < data.info.vocabulary
            expected = data.numbers[data.train.inputs["tokens"][batch.ids]]
            assert np.array_equal(batch.inputs["tokens"], expected)
            seen += batch.ids.tolist()
    assert sorted(seen) == data.ids["train"].tolist()
    (held,) = loader.evaluate("val")
    assert np.array_equal(held.ids, data.ids["val"])


def test_augmentation_of_text_is_refused(tmp_path):
    from orchestrator.config.data import Flip
    from orchestrator.data.batches import BatchMaker

    info = load(Csv(path=str(labelled(tmp_path / "a.csv")), label="label")).info
    with pytest.raises(DataError, match=r"changes images, but data\.source gives text"):
        BatchMaker([Flip()], info, 0, torch.device("cpu"))


# --- the file ------------------------------------------------------------------------------------


def problems(*overrides):
    from orchestrator.config.load import config_from_mapping

    file = {
        "name": "x",
        "data": {"source": {"type": "csv", "path": "a.csv", "label": "y"}},
        "model": {"type": "lstm"},
    }
    try:
        config_from_mapping(file, overrides)
    except ConfigError as error:
        return [f"{problem.key}: {problem.message}" for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["model={type: resnet18}"],
            "model.type: resnet18 reads images, but data.source gives tok",
        ),
        (["data.source={type: digits}"], "model.type: lstm reads tokens, but data.source gives im"),
        (["data.augment=[{type: flip}]"], "data.augment: changes images"),
        (["data.source.target=t"], "either `label` or `target` must name a column"),
        (["data.source={type: csv, path: a}"], "either `label` or `target` must name a column"),
        (["data.source.target_length=9"], "target_length is of use with `target` alone"),
        (
            ["task={type: language_model}", "evaluate={monitor: val/loss, mode: min}"],
            "task.type: language_model does not fit the answers that data.source gives; use clas",
        ),
        (["distill={}"], "distill: teaches networks for images only"),
        (["data.source.tokenizer.max_size=4"], "must be at least 5, got 4"),
        (["data.loader.type=ray"], "ray streams image_folder and parquet, but the source is 'csv'"),
        (["model={type: transformer_encoder, heads: 3}"], "heads must divide dim"),
    ],
)
def test_files_that_do_not_fit_together(overrides, said):
    found = problems(*overrides)
    assert len(found) == 1, found
    assert said in found[0]


def test_data_info_says_what_a_text_is(tmp_path, capsys):
    from orchestrator import cli

    labelled(tmp_path / "a.csv")
    file = tmp_path / "x.yaml"
    file.write_text(
        "name: x\ndata: {source: {type: csv, path: a.csv, label: label, length: 8}}\n"
        "model: {type: lstm}\n"
    )
    assert cli.run(["data", "info", str(file)]) == 0
    said = capsys.readouterr().out
    assert "texts    8 word tokens, " in said
    assert "the answer is a label" in said
    assert "classes  2: a, b" in said
    assert "pixels" not in said


def test_a_language_model_has_no_sweep_and_its_own_metrics():
    base = [
        "data.source={type: text_folder, path: a}",
        "task={type: language_model}",
        "model={type: tcn}",
    ]
    good = [*base, "evaluate={monitor: val/perplexity, mode: min}"]
    assert problems(*good) == []
    assert "reports no 'accuracy'; did you mean 'token_accuracy'" in problems(*base)[0]
    space = "sweep={trials: 1, space: {seed: {type: choice, values: [1]}}}"
    (found,) = problems(*good, space)
    assert found.startswith("sweep: compares models by one answer a sample")
    assert problems() == []
