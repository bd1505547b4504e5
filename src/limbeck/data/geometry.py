"""What moves or blanks pixels out: crop, mirror, rotation, spans and boxes, for whole batches of rows-first images.

Shapes: B = samples of a batch, H, W, C = rows, columns, channels, T = tries.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from limbeck.data.draws import Draws, Flags, Floats, Ints
from limbeck.data.pixels import per_value, put

__all__ = ["around", "blank", "box_within", "cut", "rotate", "span"]

AREA = (0.02, 0.4)
ASPECT = (0.3, 1 / 0.3)
TRIES = 10  # one try in fourteen does not fit inside the image; ten in a row, one time in 10**11


def cut(images_BHWC: Tensor, down_B: Ints, right_B: Ints, mirrored: Ints, reach: int) -> Tensor:
    """Each image (or its mirror image) read from a shifted start: one block copy an image, by index_select.

    A shift of the start moves rows and columns at once; values that come from beyond an edge are a neighbour's,
    and the caller blanks them out. Several times as fast as indexing pixels, and exact.
    """
    b, h, w, c = images_BHWC.shape
    device = images_BHWC.device
    size, guard, count = h * w * c, reach * (w + 1) * c, len(mirrored)
    flat = images_BHWC.new_empty((b + count) * size + 2 * guard)
    flat[:guard].zero_()
    flat[len(flat) - guard :].zero_()
    stock = flat[guard : len(flat) - guard].view(b + count, h, w, c)
    stock[:b].copy_(images_BHWC)
    slot_B = np.arange(b)
    if count:
        # flip is vectorised for channels-last images seen as N,C,H,W, and not for N,H,W,C.
        chosen = images_BHWC.index_select(0, put(mirrored, device))
        stock[b:].copy_(chosen.permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1))
        slot_B[mirrored] = np.arange(b, b + count)
    start_B = put(slot_B * size + down_B * (w * c) + right_B * c + guard, device)
    windows = flat.as_strided((len(flat) - size + 1, size), (1, 1))
    return windows.index_select(0, start_B).view(b, h, w, c)


def rotate(images_BHWC: Tensor, degrees_B: Floats) -> Tensor:
    """Each image turned counter-clockwise about its centre, bilinear, as if it lay in an endless field of zeros."""
    b, h, w = images_BHWC.shape[:3]
    device, turn_B = images_BHWC.device, np.deg2rad(degrees_B)
    cos, sin = (put(part(turn_B).astype(np.float32), device).view(b, 1, 1) for part in (np.cos, np.sin))
    right_W = torch.arange(w, device=device, dtype=torch.float32) - (w - 1) / 2
    down_H1 = (torch.arange(h, device=device, dtype=torch.float32) - (h - 1) / 2).unsqueeze(1)
    # Where each pixel comes from; grid_sample counts from -1 to 1 between the outer edges of the outer pixels.
    along_BHW = (cos * right_W - sin * down_H1) * (2 / w)
    grid_BHW2 = torch.stack([along_BHW, (sin * right_W + cos * down_H1) * (2 / h)], 3)
    turned_BCHW = torch.nn.functional.grid_sample(
        images_BHWC.permute(0, 3, 1, 2), grid_BHW2, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return turned_BCHW.permute(0, 2, 3, 1).contiguous()


def box_within(draws: Draws, share: float, height: int, width: int) -> tuple[Flags, Flags]:
    """Rows [B, H] and columns [B, W] of a box that lies whole inside the image; none in `1 - share` of the samples.

    Area uniform from 2 % to 40 % of the image, height to width uniform from 0.3 to 1 / 0.3; sizes that don't fit are
    drawn again.

    Source: Zhong, Zheng, Kang, Li, Yang 2020, "Random erasing data augmentation", and the code released with it.
    """
    area_TB = np.stack([draws.named(f"erase area {i}") for i in range(TRIES)])
    aspect_TB = np.stack([draws.named(f"erase aspect {i}") for i in range(TRIES)])
    area_TB = (AREA[0] + (AREA[1] - AREA[0]) * area_TB) * (height * width)
    aspect_TB = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * aspect_TB
    rows_TB = np.rint(np.sqrt(area_TB * aspect_TB)).astype(np.int64)
    columns_TB = np.rint(np.sqrt(area_TB / aspect_TB)).astype(np.int64)
    fits_TB = (rows_TB < height) & (columns_TB < width)
    first_B, every = fits_TB.argmax(0), np.arange(fits_TB.shape[1])
    chosen_B = fits_TB.any(0) & (draws.named("erase") < share)
    rows_B, columns_B = (size[first_B, every] * chosen_B for size in (rows_TB, columns_TB))
    top_B = (draws.named("erase row") * (height - rows_B + 1)).astype(np.int64)
    left_B = (draws.named("erase column") * (width - columns_B + 1)).astype(np.int64)
    return span(height, top_B, top_B + rows_B), span(width, left_B, left_B + columns_B)


def blank(out_BHWC: Tensor, rows_BH: Flags, columns_BW: Flags) -> None:
    """Zero, in place, where chosen rows and chosen columns meet; other rows are not touched."""
    b, h, w, c = out_BHWC.shape
    lines = out_BHWC.view(b * h, w * c)
    at = np.flatnonzero(rows_BH)
    chosen, sample = put(at, out_BHWC.device), put(at // h, out_BHWC.device)
    kept = per_value(~columns_BW, c, out_BHWC.device).view(b, w * c).index_select(0, sample)
    lines.index_copy_(0, chosen, lines.index_select(0, chosen).mul_(kept))


def span(size: int, first_B: Ints, last_B: Ints) -> Flags:
    """The places from `first` up to, and without, `last`; bool [B, size]."""
    place = np.arange(size)
    return (place >= first_B[:, None]) & (place < last_B[:, None])


def around(draw_B: Floats, side: Ints | int, size: int) -> Ints:
    """The first place of a span of `side` round a drawn centre; it may begin beyond the edge."""
    first_B: Ints = (draw_B * size).astype(np.int64) - side // 2
    return first_B
