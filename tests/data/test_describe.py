from __future__ import annotations

import json
from dataclasses import fields

import pytest

from limbeck.core.setting import as_plain, build
from limbeck.data import Augment, Transform, describe


def mirrored(image):
    return image.flip(2)


@pytest.mark.parametrize("how", [None, Augment()])
def test_nothing_on_is_nothing(how):
    assert describe(how) == {"kind": "none"}


def test_a_description_is_plain_and_holds_what_is_on():
    how = Augment(crop=4, flip=True, hue=0.1, cutmix=1.0)
    told = describe(how)
    assert told == {"kind": "augment", "rules": 1, "crop": 4, "flip": True, "cutmix": 1.0, "hue": 0.1}
    assert json.loads(json.dumps(told)) == told
    back = {name: value for name, value in told.items() if name not in ("kind", "rules")}
    assert Augment(**back) == how


def test_every_field_shows_when_it_is_on():
    for field in fields(Augment):
        value = True if field.name == "flip" else 1 if field.name in ("crop", "cutout") else 0.25
        assert describe(Augment(**{field.name: value}))[field.name] == value


def test_a_transform_is_described_by_its_fingerprint():
    one = Transform(mirrored)
    told = describe(one)
    assert told == {
        "kind": "transform", "rules": 1, "name": "mirrored", "on": "x", "fingerprint": one.fingerprint(),
    }  # fmt: skip
    assert describe(Transform(lambda image: image))["fingerprint"] != told["fingerprint"]


def test_augment_goes_through_plain_data_and_back():
    how = Augment(rotate=15.0, brightness=0.2, erase=0.5)
    assert build(Augment, as_plain(how), "x") == how
