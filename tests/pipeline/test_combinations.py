"""`key=a,b,c`: which values a text has, which configurations they make, and what is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import DDIM, Ancestral
from pipeline.__main__ import main
from pipeline.errors import ConfigError
from pipeline.sweeps.combinations import combine, split_values

DIGITS = Path(__file__).parents[2] / "pipeline/runs/digits.yaml"

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES.map(json.dumps), min_size=1, max_size=4), st.sampled_from([",", ", ", " ,"]))
def test_values_in_brackets_braces_and_quotes_come_apart_at_the_commas_between_them(
    values: list[str], comma: str
) -> None:
    assert split_values(comma.join(values)) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("5", ["5"]),
        ("5,10", ["5", "10"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("{kind: ddim, steps: 5},{kind: ancestral}", ["{kind: ddim, steps: 5}", "{kind: ancestral}"]),
        ('\'a,b\',"c,\\",d"', ["'a,b'", '"c,\\",d"']),
        ("1],2", ["1]", "2"]),
        ("[1,2", ["[1,2"]),
        ("", [""]),
        ("5,", ["5", ""]),
    ],
)
def test_a_text_has_these_values(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_the_product_is_in_the_order_given_with_the_first_key_outermost() -> None:
    made = combine(DIGITS, ["sample.sampler.eta=0,1", "train.images=1_000", "sample.sampler.steps=5,10"])
    assert [tuple(one.settings.values()) for one in made] == [("0", "5"), ("0", "10"), ("1", "5"), ("1", "10")]
    samplers = [one.config.sample.sampler for one in made]
    assert samplers == [DDIM(steps=steps, eta=eta, grid="uniform") for eta in (0, 1) for steps in (5, 10)]
    assert {one.config.train.images for one in made} == {1_000}


def test_another_kind_leaves_behind_what_the_file_says_of_the_first() -> None:
    made = combine(DIGITS, ["sample.sampler.kind=ddim,ancestral", "sample.sampler.steps=5"])
    assert [one.config.sample.sampler for one in made] == [DDIM(steps=5, eta=1, grid="uniform"), Ancestral(steps=5)]


def test_values_that_are_sections_are_settings_key_by_key() -> None:
    made = combine(DIGITS, ["sample.sampler={kind: ddim, steps: 5},{kind: ancestral}"])
    assert [one.settings for one in made] == [
        {"sample.sampler.kind": "ddim", "sample.sampler.steps": "5"},
        {"sample.sampler.kind": "ancestral"},
    ]


def test_combinations_that_come_to_the_same_are_one() -> None:
    made = combine(DIGITS, ["sample.sampler.steps=5,10,5", "sample.sampler.eta=0,0.0"])
    assert [one.settings["sample.sampler.steps"] for one in made] == ["5", "10"]


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        combine(DIGITS, overrides)
    return str(refused.value)


def test_a_sweep_of_nothing_is_refused() -> None:
    assert refusal("sample.sampler.steps=5") == (
        "sweep: no key has several values; give them, such as sample.sampler.steps=5,10,20,50"
    )


def test_all_mistakes_in_the_keys_are_named_at_once() -> None:
    message = refusal(
        "train.images=1,2",
        "sampler.steps=5,10",
        "sample.images=10,,20",
        "sample.sampler.steps=5,6",
        "sample.sampler={}",
    )
    head, *mistakes = message.splitlines()
    assert head == "sweep: 4 mistakes in the keys"
    assert [mistake.split(":")[0].strip() for mistake in mistakes] == [
        "train.images",
        "sampler.steps",
        "sample.images",
        "sample.sampler.steps",
    ]
    assert "found 2 values, expected one; all combinations share one checkpoint" in mistakes[0]
    assert "nothing between two commas; remove one, or write null" in mistakes[2]
    assert "sample.sampler comes later and replaces it" in mistakes[3]


def test_a_key_given_twice_is_refused() -> None:
    assert "sample.images: sample.images comes later" in refusal("sample.images=10,20", "sample.images=30")


def test_every_refused_combination_is_named_and_each_message_said_once() -> None:
    message = refusal("sample.sampler.steps=5,2000", "sample.sampler.kind=ddim,ancestral", "sample.images=10")
    lines = [line.strip() for line in message.splitlines()]
    assert lines[:3] == [
        "sweep: 2 combinations are refused",
        "sample.sampler.steps=2000 sample.sampler.kind=ddim",
        "sample.sampler.steps=2000 sample.sampler.kind=ancestral",
    ]
    assert message.count("has no grid of 2000") == 1
    assert "steps=5 " not in message


def test_an_argument_without_a_value_is_a_mistake_of_every_combination() -> None:
    message = refusal("sample.sampler.steps=5,10", "verbose")
    assert "2 combinations are refused" in message
    assert "found 'verbose', expected section.key=value (override 2)" in message


def test_the_command_line_refuses_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(DIGITS), "data.image_size=8,16"]) == 2
    assert "data.image_size: found 2 values, expected one" in capsys.readouterr().err
