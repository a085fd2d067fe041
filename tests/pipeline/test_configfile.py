import io
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from model.record import Record
from pipeline.errors import ConfigError
from pipeline.runfile.configfile import MAX_FILE_BYTES, _shown, dump, flatten, load


class Smooth(Record):
    kind: Literal["smooth"] = "smooth"
    width: int = Field(3, ge=1)
    edge: float = 0.0


class Sharp(Record):
    kind: Literal["sharp"] = "sharp"
    amount: float = 0.5

    @model_validator(mode="after")
    def _is_not_one(self) -> "Sharp":
        if self.amount == 1:
            raise ValueError("amount 1 changes nothing; choose another")
        return self


Filter = Annotated[Smooth | Sharp, Field(discriminator="kind")]


class Train(Record):
    images: int = Field(100, ge=1)
    workers: int = 1
    rate: float = 1e-4
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    limit: int | Literal["auto"] = "auto"
    flip: bool = False
    filter: Filter = Smooth()
    more: tuple[Filter, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    weights: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _divides(self) -> "Train":
        if self.images % self.workers:
            raise ValueError(f"images {self.images} does not divide by workers {self.workers}")
        return self


class Schema(Record):
    version: Literal[1] = 1
    name: str = "run"
    output: Path = Path("outputs")
    note: str | None = None
    train: Train = Train()
    chosen: Filter
    register_: str = Field("model", alias="register")


CHOSEN = "chosen: {kind: sharp}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def loaded(file: Path, text: str, *overrides: str) -> Schema:
    file.write_text(text + CHOSEN)
    return load(file, overrides, Schema)


def refused(file: Path, text: str | bytes, *overrides: str) -> str:
    """The message of a refusal, without the folder."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load(file, overrides, Schema)
    return str(caught.value).replace(f"{file.parent}/", "")


def mistakes(file: Path, text: str, *overrides: str) -> list[str]:
    return [line.strip() for line in refused(file, text + CHOSEN, *overrides).splitlines()[1:]]


def test_overrides_are_merged_before_the_one_validation(file: Path) -> None:
    config = loaded(file, "train: {images: 9, workers: 2}\n", "train.workers=3", "name=other", "note=")
    assert (config.train.images, config.train.workers, config.name, config.note) == (9, 3, "other", None)


@pytest.mark.parametrize(
    ("written", "read"),
    [("50_000_000", 50_000_000), ("010", 10), ("5e7", 50_000_000), ("+7", 7)],
)
def test_whole_numbers_are_read_as_people_write_them(file: Path, written: str, read: int) -> None:
    assert loaded(file, f"train: {{images: {written}}}\n").train.images == read


@pytest.mark.parametrize(("written", "read"), [("1e-4", 1e-4), ("2.5E3", 2500.0), (".5", 0.5), ("1_0.5", 10.5)])
def test_fractions_are_read_as_people_write_them(file: Path, written: str, read: float) -> None:
    assert loaded(file, "", f"train.rate={written}").train.rate == read


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "1:30", "2024-01-01", "0x1f", "1__0", "a b", "'7'"])
def test_words_that_old_yaml_would_turn_into_something_else_stay_words(file: Path, word: str) -> None:
    assert loaded(file, f"name: {word}\n").name == word.strip("'")


def test_an_override_makes_the_sections_on_its_way_and_takes_the_default_kind(file: Path) -> None:
    assert loaded(file, "", "train.filter.width=5").train.filter == Smooth(width=5)
    assert loaded(file, "train:\n", "train.filter.width=5").train.filter == Smooth(width=5)


def test_an_override_of_a_section_replaces_it(file: Path) -> None:
    text = "train: {filter: {kind: smooth, width: 5, edge: 0.5}}\n"
    assert loaded(file, text, "train.filter={kind: smooth, width: 7}").train.filter == Smooth(width=7)


@pytest.mark.parametrize("order", [1, -1])
def test_another_kind_drops_what_the_file_said_of_the_old_one_and_keeps_other_overrides(file: Path, order: int) -> None:
    overrides = ["train.filter.kind=sharp", "train.filter.amount=0.25"][::order]
    config = loaded(file, "train: {filter: {width: 5, edge: 0.5}}\n", *overrides)
    assert config.train.filter == Sharp(amount=0.25)


def test_the_same_kind_again_drops_nothing(file: Path) -> None:
    assert loaded(file, "train: {filter: {width: 5}}\n", "train.filter.kind=smooth").train.filter == Smooth(width=5)


def test_all_mistakes_are_told_at_once_with_key_found_expected_and_place(file: Path) -> None:
    text = """\
nam: x
name: 3
output:
train:
  images: lots
  imges: 5
  workers: 1.5
  flip: maybe
  limit: autp
  precision: fp33
  filter: {kind: smoth, width: 0}
  more: [{kind: smooth, width: 0}, {kind: q}]
  weights: {a: x}
register: [a]
"""
    assert sorted(mistakes(file, text, "train.rate=fast", "train.sizes=[1, x]", "chosen.width=3")) == sorted(
        [
            "nam: unknown key; did you mean name? (line 1)",
            "name: found 3, expected text; put it in quotes (line 2)",
            "output: found nothing, expected path (line 3)",
            "train.images: found 'lots', expected int >= 1 (line 5)",
            "train.imges: unknown key; did you mean images? (line 6)",
            "train.workers: found 1.5, expected int (line 7)",
            "train.flip: found 'maybe', expected true|false (line 8)",
            "train.limit: found 'autp', expected int or auto; did you mean auto? (line 9)",
            "train.precision: found 'fp33', expected auto|fp32|bf16; did you mean fp32? (line 10)",
            "train.filter.kind: found 'smoth', expected smooth|sharp; did you mean smooth? (line 11)",
            "train.more[0].width: found 0, expected int >= 1 (line 12)",
            "train.more[1].kind: found 'q', expected smooth|sharp (line 12)",
            "train.weights.a: found 'x', expected float (line 13)",
            "register: found [a], expected text (line 14)",
            "train.rate: found 'fast', expected float (override 1)",
            "train.sizes[1]: found 'x', expected int (override 2)",
            "chosen.width: unknown key; the keys here are kind, amount (override 3)",
        ]
    )


def test_a_missing_key_and_a_missing_kind_are_named(file: Path) -> None:
    assert refused(file, "name: x\n").splitlines()[1:] == [
        "  chosen: missing, expected a section whose kind is smooth|sharp"
    ]
    assert "  chosen.kind: missing, expected smooth|sharp (line 1)" in refused(file, "chosen: {width: 3}\n")


def test_what_a_validator_says_is_shown_in_its_own_words(file: Path) -> None:
    text = "train: {images: 9, workers: 2}\n"
    assert mistakes(file, text) == ["train: images 9 does not divide by workers 2 (line 1)"]
    assert mistakes(file, "", "train.filter={kind: sharp, amount: 1}") == [
        "train.filter: amount 1 changes nothing; choose another (override 1)"
    ]


@pytest.mark.parametrize("key", ["train.images", "train.rate", "train.workers"])
def test_true_is_not_taken_for_the_number_one(file: Path, key: str) -> None:
    assert [line.split(",")[0] for line in mistakes(file, "", f"{key}=true")] == [f"{key}: found true"]


def test_a_section_must_be_a_section(file: Path) -> None:
    assert mistakes(file, "train: 3\n") == ["train: found 3, expected a section (line 1)"]
    assert mistakes(file, "", "train.filter=3") == [
        "train.filter: found 3, expected a section whose kind is smooth|sharp (override 1)"
    ]
    assert mistakes(file, "train: {images: 5}\n", "train.images.x=3", "name.a=1", "train.sizes.x=1") == [
        "train.images.x: train.images is 5, not a section (override 1)",
        "name: found a section, expected text (override 2)",
        "train.sizes: found a section, expected list of int (override 3)",
    ]


@pytest.mark.parametrize(
    "override", ["train.images", "=3", "train..images=3", "--flag=3", "train.=3", "a[0]=1", "a." * 40 + "a=1"]
)
def test_an_override_must_be_a_key_and_a_value(file: Path, override: str) -> None:
    assert mistakes(file, "", override) == [f"found {_shown(override)}, expected section.key=value (override 1)"]


def test_an_override_whose_value_is_not_yaml_is_refused_among_the_others(file: Path) -> None:
    found = mistakes(file, "", "note=[1,", "note={a: 1, a: 2}", "nam=x")
    assert found[0].startswith("note: line 1, column 4: not valid YAML")
    assert found[1] == "note: a: written twice, on lines 1 and 1; keep one (override 2)"
    assert "nam: unknown key; did you mean name? (override 3)" in found


def test_a_forgotten_space_after_a_colon_is_recognised(file: Path) -> None:
    assert "train.filter.kind:sharp: unknown key; write a space after the colon (override 1)" in mistakes(
        file, "", "train.filter={kind:sharp}"
    )


def test_a_key_that_is_written_twice_is_refused_at_any_depth_with_both_lines(file: Path) -> None:
    text = "name: a\ntrain:\n  images: 1\n  more:\n    - {kind: sharp, kind: smooth}\n  images: 2\nname: b\n"
    assert [line for line in mistakes(file, text) if "twice" in line] == [
        "train.more[0].kind: written twice, on lines 5 and 5; keep one",
        "train.images: written twice, on lines 3 and 6; keep one",
        "name: written twice, on lines 1 and 7; keep one",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c\n", r"line 1, column 5: not valid YAML: mapping values are not allowed here"),
        ("train:\n\timages: 3\n", r"line 2, column 1: not valid YAML: found a tab, expected spaces"),
        ("name: a\n---\nname: b\n", r"line 2, column 1: .*but found another document"),
        ("", r"run.yaml: found nothing, expected lines of 'key: value'"),
        ("# only a comment\n", r"found nothing, expected lines"),
        ("- a\n- b\n", r"found \[a, b\], expected lines"),
        ("just words\n", r"found 'just words', expected lines"),
        (b"name: \xff\n", r"byte 6 is not UTF-8 text"),
        (b"name: a\0b\n", r"not valid YAML: unacceptable character #x0000"),
        ("[" * 5_000, r"line 1: nested more than 32 levels deep"),
        ("a: &a [*a]\n", r"line 1: nested more than 32 levels deep"),
        ("a: " + "x" * MAX_FILE_BYTES, r"more than 262,144 bytes"),
        ('a: "\\UFFFFFFFF"\n', r"not valid YAML: "),
        ('a: "\\U00110000"\n', r"not valid YAML: chr\(\) arg not in range"),
        (f"%YAML 1.{'9' * 5_000}\n---\na: 1\n", r"not valid YAML: "),
    ],
)
def test_a_file_that_is_no_run_file_is_refused(file: Path, text: str | bytes, message: str) -> None:
    answer = refused(file, text)
    assert answer.startswith("run.yaml: ")
    with pytest.raises(ConfigError, match=message):
        load(file, [], Schema)


def test_a_few_aliases_that_stand_for_millions_of_values_are_refused(file: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
    assert "more than 10,000 values; write fewer aliases" in refused(file, "\n".join(lines))


def test_an_alias_is_a_copy(file: Path) -> None:
    config = loaded(file, "train:\n  filter: &f {width: 5}\n  more: [*f]\n".replace("{w", "{kind: smooth, w"))
    assert config.train.more == (config.train.filter,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "note: !!python/object/apply:os.system [x]\n",
            "note: the tag !!python/object/apply:os.system cannot",
        ),
        ("note: !!int x\n", "note: the tag !!int cannot be used here; write a plain value"),
        ("note: !!set {a}\n", "note: the tag !!set cannot"),
        ("note: !mine a\n", "note: the tag !mine cannot"),
        ('output: "a\\0b"\n', r"output: the character '\\x00', which no file's name can hold"),
        ('note: "\\ud800"\n', r"note: the character '\\ud800', which no file's name can hold"),
        ("? [a]\n: 1\n", r"a key must be one word \(line 1\)"),
        (f"version: {'9' * 5_000}\n", r"version: a number of 5,000 characters \(line 1\)"),
    ],
)
def test_values_that_are_not_plain_are_refused(file: Path, text: str, message: str) -> None:
    file.write_text(text + CHOSEN)
    with pytest.raises(ConfigError, match=message):
        load(file, [], Schema)


def test_a_file_that_is_not_there_is_refused_with_the_nearest_name(file: Path) -> None:
    loaded(file, "")
    with pytest.raises(ConfigError, match=r"rum.yaml: no such file; did you mean run.yaml\?"):
        load(file.with_name("rum.yaml"), [], Schema)
    with pytest.raises(ConfigError, match=r"run.yaml: no such file$"):
        load(file.parent / "none" / "run.yaml", [], Schema)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory; give the path of a YAML run file"):
        load(tmp_path, [], Schema)


def test_a_wrong_configuration_has_exit_code_2_and_one_heading(file: Path) -> None:
    assert ConfigError("").exit_code == 2
    assert refused(file, CHOSEN, "nam=x").splitlines()[0] == "run.yaml: 1 mistake in the configuration"
    assert refused(file, CHOSEN, "nam=x", "y=x").splitlines()[0] == "run.yaml: 2 mistakes in the configuration"


def test_control_characters_and_long_values_are_not_printed_raw(file: Path) -> None:
    (line,) = mistakes(file, "", 'train.images="\\e[31m' + "x" * 500 + '"')
    assert "\\x1b[31m" in line
    assert len(line) < 130


def test_the_dump_has_every_key_in_the_order_of_the_schema_and_loads_back(file: Path) -> None:
    config = loaded(file, "train: {more: [{kind: sharp}], weights: {b: 1, a: 2}}\n", "output=/x", "register=y")
    text = dump(config)
    assert list(yaml.safe_load(text)) == ["version", "name", "output", "note", "train", "chosen", "register"]
    assert list(yaml.safe_load(text)["train"]) == list(Train.model_fields)
    file.write_text(text)
    assert load(file, [], Schema) == config
    assert dump(load(file, [], Schema)) == text


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)  # those are refused
traps = st.sampled_from(
    ["1e-4", "on", "null", "~", "1_000", "010", "1:30", "=", "<<", "{a: b}", "- x", "true", "", " "]
)


@settings(max_examples=60, deadline=None)
@given(name=words | traps, note=st.none() | words | traps, rate=st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_and_number_survives_the_dump(tmp_path_factory: Any, name: str, note: str | None, rate: float) -> None:
    config = Schema(name=name, note=note, train=Train(rate=rate), chosen=Smooth())
    file = tmp_path_factory.mktemp("dump") / "run.yaml"
    file.write_text(dump(config), newline="")
    assert load(file, [], Schema) == config
    # Another YAML 1.1 reader takes no text for a number or a truth value either.
    assert yaml.safe_load(io.StringIO(dump(config)))["name"] == name


def test_every_run_file_loads_and_its_dump_loads_back_equal(file: Path) -> None:
    import pipeline
    from pipeline.runfile.config import Config

    run_files = sorted((Path(pipeline.__file__).parent / "runs").glob("*.yaml"))
    assert run_files
    for run_file in run_files:
        config = load(run_file, [], Config)
        file.write_text(dump(config))
        assert load(file, [], Config) == config


def test_settings_are_flattened_to_dotted_keys_and_json() -> None:
    config = {"train": {"images": 5, "ema": {"decay": 0.5}}, "layers": [1, 2], "root": None, "kind": "ddim"}
    assert flatten(config) == {
        "train.images": "5",
        "train.ema.decay": "0.5",
        "layers": "[1, 2]",
        "root": "null",
        "kind": "ddim",
    }
