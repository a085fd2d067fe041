"""Protocols are equal exactly when nothing that a score depends on differs."""

import pytest
from pydantic import ValidationError

from evaluation.extractors import ExtractorIdentity
from evaluation.protocol import Protocol, Reference, differences

PROTOCOL = Protocol(
    images=2000,
    first_seed=0,
    chunk_images=250,
    sampler={"kind": "ddim", "steps": 50, "eta": 0.0, "grid": "quadratic"},
    guidance={"kind": "none"},
    precision="fp32",
    compile=False,
    codec_digest="d" * 64,
    extractor=ExtractorIdentity(kind="classifier", layer="64", digest="a" * 64, resize="none"),
    reference=Reference(data_digest="b" * 64, split="train", images=1437),
    device_type="cpu",
    torch_fidelity="0.4.0",
    network_evaluations=50.0,
)


def changed(**changes: object) -> Protocol:
    return Protocol.model_validate({**PROTOCOL.model_dump(), **changes})


CHANGES = [
    (changed(images=1000), "sample images: 2000 against 1000"),
    (changed(first_seed=7), "sample first seed: 0 against 7"),
    (changed(chunk_images=100), "sample chunk images: 250 against 100"),
    (changed(sampler={**PROTOCOL.sampler, "steps": 10}), "sampler steps: 50 against 10"),
    (changed(sampler={**PROTOCOL.sampler, "order": 2}), "sampler order: absent against 2"),
    (
        changed(extractor={**PROTOCOL.extractor.model_dump(), "digest": "c" * 64}),
        f"extractor digest: {'a' * 64} against {'c' * 64}",
    ),
    (
        changed(reference={**PROTOCOL.reference.model_dump(), "split": "heldout"}),
        "reference split: train against heldout",
    ),
    (
        changed(reference={**PROTOCOL.reference.model_dump(), "flipped": True}),
        "reference flipped: False against True",
    ),
    (changed(precision="bf16"), "precision: fp32 against bf16"),
    (changed(compile=True), "compile: False against True"),
    (changed(codec_digest="e" * 64), f"codec digest: {'d' * 64} against {'e' * 64}"),
    (changed(device_type="cuda"), "device type: cpu against cuda"),
    (changed(torch_fidelity="0.5.0"), "torch fidelity: 0.4.0 against 0.5.0"),
]


@pytest.mark.parametrize(("other", "difference"), CHANGES)
def test_every_change_changes_the_digest_and_is_named(other: Protocol, difference: str) -> None:
    assert other.digest != PROTOCOL.digest
    assert differences(PROTOCOL, other) == [difference]


def test_two_changes_are_both_named_in_the_order_of_the_fields() -> None:
    other = changed(device_type="cuda", images=1000)
    assert differences(PROTOCOL, other) == [
        "sample images: 2000 against 1000",
        "device type: cpu against cuda",
    ]


def test_a_missing_option_differs_from_null() -> None:
    with_null = changed(sampler={**PROTOCOL.sampler, "clip": None})
    assert with_null.digest != PROTOCOL.digest
    assert differences(PROTOCOL, with_null) == ["sampler clip: absent against None"]


def test_what_was_measured_keeps_no_two_scores_apart_and_is_stored() -> None:
    other = changed(network_evaluations=87.3)
    assert other.digest == PROTOCOL.digest
    assert differences(PROTOCOL, other) == []
    assert Protocol.model_validate_json(other.model_dump_json()).network_evaluations == 87.3


def test_protocol_read_back_from_its_json_is_the_same() -> None:
    again = Protocol.model_validate_json(PROTOCOL.model_dump_json())
    assert again.digest == PROTOCOL.digest
    assert differences(PROTOCOL, again) == []


def test_order_of_the_samplers_keys_does_not_matter() -> None:
    turned = changed(sampler=dict(reversed(PROTOCOL.sampler.items())))
    assert turned.digest == PROTOCOL.digest


def test_digest_is_the_same_in_every_version_of_this_code() -> None:
    assert PROTOCOL.digest == "ba9784f1a41f099f47c7959a0bac27976d5df5c06f89554c494e7eb91170ba4d"


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        changed(comment="x")
