"""Prepared TensorFlow Datasets data sets, read without TensorFlow.

The data set must lie on disk as ArrayRecord. Its files are read without the data set's own code, which
for many of the catalogue would import TensorFlow.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from lm.errors import InputError, nearest

_READ_AT_ONCE = 1024  # Records.


@dataclasses.dataclass(frozen=True)
class PreparedSplit:
    """One field of one split.

    Attributes:
        builder: TFDS's own, made from the files.
        split: as TFDS writes it: `train`, `train[:10%]`, `train+test`.
        field: name of a feature that is text.
    """

    builder: Any
    split: str
    field: str

    def values(self) -> Iterator[bytes | str]:
        """Yields the field of each record, in the order of the files."""
        records = self.builder.as_data_source(split=self.split)
        for start in range(0, len(records), _READ_AT_ONCE):
            stop = min(start + _READ_AT_ONCE, len(records))
            for record in records.__getitems__(list(range(start, stop))):
                yield record[self.field]

    def identity(self) -> list[Any]:
        """Returns name, version, split, field, and the names and sizes of all files.

        Sizes, because hashing the content would read terabytes for some data sets.
        """
        files = sorted(self.builder.data_path.iterdir())
        sizes = [[path.name, path.stat().length] for path in files if path.is_file()]
        return [str(self.builder.info.full_name), self.split, self.field, sizes]


def open_split(name: str, field: str, split: str, data_dir: str, spec: str) -> PreparedSplit:
    """Finds a prepared data set.

    Args:
        name: NAME, NAME/CONFIG, each with an optional :VERSION.
        field: name of a text feature.
        split: a split of TFDS; '' for `train`.
        data_dir: where data sets are prepared; '' for TFDS's default.
        spec: the source as the config writes it, for messages.

    Raises:
        InputError: tensorflow-datasets is not installed, the data set is not prepared, is not in a
            format of random access, or has no such split or text feature.
    """
    try:
        from tensorflow_datasets.core import read_only_builder
    except ImportError:
        raise InputError(
            f"source '{spec}' needs TFDS: pip install tensorflow-datasets array-record."
        ) from None
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=data_dir or None)
    except Exception as error:
        if type(error).__name__ != 'DatasetNotFoundError':
            raise
        where = f"'{data_dir}'" if data_dir else 'the default folder of TFDS'
        raise InputError(
            f"source '{spec}': '{name}' is not prepared in {where} (config.data.tfds_dir). Prepare it "
            f"once: tfds.builder('{name}', data_dir=..., file_format='array_record')"
            '.download_and_prepare().'
        ) from None
    split = split or 'train'
    if field not in builder.info.features:
        raise InputError(
            f"source '{spec}': '{name}' has no feature '{field}'."
            f'{nearest(field, builder.info.features)}'
        )
    dtype = builder.info.features[field].np_dtype
    if builder.info.features[field].shape != () or dtype not in (object, str, bytes):
        raise InputError(f"source '{spec}': the feature '{field}' of '{name}' is not text.")
    try:
        builder.as_data_source(split=split)
    except NotImplementedError:
        raise InputError(
            f"source '{spec}': '{name}' is prepared as {builder.info.file_format.value}; prepare it "
            "with file_format='array_record', which is read without TensorFlow."
        ) from None
    except (ValueError, KeyError, AssertionError):
        raise InputError(
            f"source '{spec}': '{name}' has no split '{split}'."
            f'{nearest(split, builder.info.splits)}'
        ) from None
    return PreparedSplit(builder, split, field)
