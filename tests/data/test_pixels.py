from __future__ import annotations

import pytest
import torch

from limbeck.core.errors import DataError
from limbeck.core.normalize import Normalize
from limbeck.data.pixels import affine, convert


def test_a_normalisation_of_other_channels_is_refused():
    with pytest.raises(DataError, match="1 channels"):
        affine(Normalize(mean=(0.1, 0.2, 0.3), std=(1, 1, 1)), dtype=torch.uint8, channels=1)


def test_floats_are_converted_in_place_and_bytes_are_left_alone():
    step = affine(Normalize(mean=(0.5,), std=(0.25,)), dtype=torch.float32, channels=2)
    floats, some = torch.rand(2, 3, 4, 2), torch.randint(0, 256, (2, 3, 4, 2), dtype=torch.uint8)
    want, before = (floats.double() - 0.5) * 4, some.clone()
    assert convert(floats, step).data_ptr() == floats.data_ptr()
    torch.testing.assert_close(floats.double(), want, atol=1e-6, rtol=1e-6)
    convert(some, step)
    assert torch.equal(some, before)
