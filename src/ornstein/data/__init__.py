"""Data: from what the user has to samples and their space, and back."""

from __future__ import annotations

from .array import ArraySpace as ArraySpace
from .data import Data as Data
from .data import Lazy as Lazy
from .data import Split as Split
from .images import ImageSpace as ImageSpace
from .load import load_data as load_data
from .quantiles import Quantiles as Quantiles
from .series import SeriesCodec as SeriesCodec
from .series import SeriesSpace as SeriesSpace
from .space import Space as Space
from .table import Column as Column
from .table import TableSpace as TableSpace
from .table_codec import TableCodec as TableCodec

KINDS: dict[str, type[Space]] = {space.kind: space for space in (ArraySpace, ImageSpace, TableSpace, SeriesSpace)}
"""The kinds of space that can be read from JSON."""
