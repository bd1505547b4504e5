"""A teacher's signals on disk: arrays by sample and view, never by position. Knows no models and no data sets."""

from __future__ import annotations

from limbeck.targets.codec import CODECS, Codec, Dense, Origin, Sampled, TopK
from limbeck.targets.gather import scatter
from limbeck.targets.plan import Output, Piece, Plan
from limbeck.targets.store import Store

__all__ = ["CODECS", "Codec", "Dense", "Origin", "Output", "Piece", "Plan", "Sampled", "Store", "TopK", "scatter"]
