"""YAML 1.2 scalars, places, and everything that is refused."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.config.load import load_config
from orchestrator.config.yaml import MAX_BYTES, parse_yaml, read_yaml, scalar
from orchestrator.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("+.5", 0.5),
        ("2.", 2.0),
        ("-7", -7),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("5%", "5%"),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text, value):
    found = parse_yaml(f"key: {text}", "f").values["key"]
    assert found == value
    assert type(found) is type(value)


def test_quoted_scalars_are_text():
    assert parse_yaml("a: '1'\nb: \"true\"\nc: |\n  3\n", "f").values == {
        "a": "1",
        "b": "true",
        "c": "3\n",
    }


def test_every_key_and_item_knows_its_line():
    text = "a: 1\nb:\n  c: [x, y]\n  d:\n  - e: 1\n  - e: 2\n"
    places = parse_yaml(text, "f").places
    assert places["a",] == "f:1"
    assert places["b", "c"] == "f:3"
    assert places["b", "d", 1, "e"] == "f:6"


def test_aliases_are_copied():
    values = parse_yaml("a: &x {b: [1]}\nc: *x\n", "f").values
    assert values["c"] == {"b": [1]}
    assert values["c"] is not values["a"]


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("a: 1\nb: 2\na: 3", "f:3", "given twice; first on line 1"),
        ("a: .nan", "f:1", "finite"),
        ("a: [1, -.inf]", "f:1", "finite"),
        ("a: 1e999", "f:1", "too large"),
        ("a: 99999999999999999999", "f:1", "too large"),
        ("a: !!python/object/apply:os.system [x]", "f:1:4", "tags"),
        ("a: !mine x", "f:1:4", "tags"),
        ("a: !!str 1", "f:1:4", "tags"),
        ("a: &x [*x]", "f:1", "can't hold itself"),
        ("a: *x", "f:1:4", "alias"),
        (BOMB, "f:", "values, counting aliases"),
        ("[" * 60, "f:1:41", "deep"),
        ("1: a", "f:1", "keys are text, but got '1'"),
        ("true: a", "f:1", "keys are text"),
        ("? [a]\n: b", "f:1", "keys are text"),
        ("<<: {a: 1}", "f:1", "extends"),
        ("a: 1\n---\nb: 1", "f:2:1", "several documents"),
        ("a:\n\tb: 1", "f:2:1", "tab"),
        ("a: b: c", "f:1:5", "': '"),
        ("a: [1, 2", "f:1", "not closed"),
        ("a: 'x", "f:1", "quote is not closed"),
        ("a:\n  b: 1\n c: 2", "f:3:2", "indentation"),
        ("a: @x", "f:1:4", "quotes"),
        ("a: \x01", "f:1:4", "U+0001"),
        ('a: "\\ud800"', "f:1", "surrogate"),
        ('a: "\\UFFFFFFFF"', "f", "not YAML"),
    ],
)
def test_what_a_file_must_not_hold(text, where, said):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f")
    problem = caught.value.problems[0]
    assert problem.where.startswith(where)
    assert said in problem.message


def test_several_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_yaml("a: .nan\nb: 1\nb: 2\n3: 4\n", "f")
    assert [problem.where for problem in caught.value.problems] == ["f:1", "f:3", "f:4"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"# only a comment\n", "empty"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"text", "must be a mapping"),
        (b"name: \xff\xfe\n", "UTF-8"),
        (b"#" * (MAX_BYTES + 1), "larger than 256 KiB"),
    ],
)
def test_files_that_are_no_experiment(tmp_path, content, said):
    path = tmp_path / "f.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_yaml(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="directory"):
        read_yaml(tmp_path)


def test_a_byte_order_mark_is_no_character(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_yaml(path).values == {"name": "x"}


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["adamw", "1e-3", "3 epochs", "auto", "digits", "val/loss", "no", "5%"]),
)
_KEYS = (
    st.text(max_size=4)
    | st.sampled_from(
        ["name", "data", "source", "type", "model", "optimizer", "lr", "train", "for", "sweep"]
    )
    | st.sampled_from(
        ["space", "optimizer.lr", "model.type", "augment", "extends", "set", "values"]
    )
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.text(max_size=60) | st.text("{}[]:-,&*!|>'\"%@#?\n\t ab1.~<", max_size=40))
@example("%YAML 9999999999999999999999.1\n---\na")
@example("? ")
@example("a: !<")
@settings(max_examples=300)
def test_any_text_is_read_or_refused(text):
    try:
        parse_yaml(text, "f")
    except ConfigError as error:
        assert error.problems
        assert all(problem.message for problem in error.problems)


@given(st.binary(max_size=60))
@settings(max_examples=100)
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_config(path)


@given(tree=st.dictionaries(_KEYS, _TREES, max_size=5), override=st.text(max_size=20))
@settings(max_examples=100)
def test_any_mapping_is_an_experiment_or_refused(tree, override):
    from orchestrator.config.load import config_from_mapping

    tree.pop("plugins", None)
    whole = {"name": "x", "data": {"source": {"type": "digits"}}, "model": {"type": "resnet18"}}
    for overrides in ([], [override], [f"model.{override}"]):
        if override.startswith("plugins"):
            continue
        try:
            config_from_mapping({**whole, **tree}, overrides)
        except ConfigError as error:
            assert all(problem.message for problem in error.problems)


@given(st.text("0123456789+-.eEox_:~nulltrafsi", max_size=12))
def test_scalars_agree_with_pythons_numbers(text):
    try:
        found = scalar(text)
    except ValueError:
        return
    if isinstance(found, float):
        assert found == float(text)
    if type(found) is int and text[:2] not in ("0o", "0x"):
        assert found == int(text)
