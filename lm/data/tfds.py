"""Prepared TensorFlow Datasets data sets, of texts or of pairs of them, read without TensorFlow.

The data set must lie on disk as ArrayRecord. Its files are read without the data set's own code, which
for many of the catalogue would import TensorFlow.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterator
from typing import Any

from lm.errors import InputError, nearest

_READ_AT_ONCE = 1024  # Records.


@dataclasses.dataclass(frozen=True)
class PreparedSplit:
    """One field of one split, or two, the sides of pairs.

    Attributes:
        builder: TFDS's own, made from the files.
        split: as TFDS writes it: `train`, `train[:10%]`, `train+test`.
        paths: of the features that are text, such as ('text',), or ('translation', 'en') in a dict.
        spec: the source as the config writes it, for messages.
    """

    builder: Any
    split: str
    paths: list[tuple[str, ...]]
    spec: str

    def values(self) -> Iterator[bytes | str]:
        """Yields the fields of each record, one after the other, in the order of the files.

        Raises:
            InputError: a side of a pair is empty.
        """
        records = self.builder.as_data_source(split=self.split)
        for start in range(0, len(records), _READ_AT_ONCE):
            stop = min(start + _READ_AT_ONCE, len(records))
            for number, record in enumerate(records.__getitems__(list(range(start, stop))), start):
                for path in self.paths:
                    value = functools.reduce(operator.getitem, path, record)
                    if len(self.paths) > 1 and not value.strip():
                        raise InputError(
                            f"source '{self.spec}': '{path[-1]}' of record {number} is empty; both "
                            'sides of a pair must hold text.'
                        )
                    yield value

    def identity(self) -> list[Any]:
        """Returns name, version, split, fields, and the names and sizes of all files.

        Sizes, because hashing the content would read terabytes for some data sets.
        """
        files = sorted(self.builder.data_path.iterdir())
        sizes = [[path.name, path.stat().length] for path in files if path.is_file()]
        return [str(self.builder.info.full_name), self.split, self.paths, sizes]


def open_split(name: str, fields: list[str], split: str, data_dir: str, spec: str) -> PreparedSplit:
    """Finds a prepared data set.

    Args:
        name: NAME, NAME/CONFIG, each with an optional :VERSION.
        fields: the name of a text feature, or two, of a translation's languages or any others. They may be
            features of the data set, or lie in a feature that is a dict.
        split: a split of TFDS; '' for `train`.
        data_dir: where data sets are prepared; '' for TFDS's default.
        spec: the source as the config writes it, for messages.

    Raises:
        InputError: tensorflow-datasets is not installed, the data set is not prepared, is not in a
            format of random access, has no such split or text feature, or the fields are more than two.
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
    if len(fields) > 2:
        raise InputError(f"source '{spec}': {len(fields)} fields are neither a text nor a pair.")
    paths = [_path(builder.info.features, field, name, spec) for field in fields]
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
    return PreparedSplit(builder, split, paths, spec)


def _path(features: Any, field: str, name: str, spec: str) -> tuple[str, ...]:
    """Returns where a text feature is: (field,), or (dict, field)."""
    from tensorflow_datasets.core.features.features_dict import FeaturesDict

    paths = {key: (key,) for key in features}
    for outer, feature in features.items():
        if isinstance(feature, FeaturesDict):  # Such as a Translation.
            paths = {inner: (outer, inner) for inner in feature} | paths
    if field not in paths:
        raise InputError(
            f"source '{spec}': '{name}' has no feature '{field}'.{nearest(field, paths)}"
        )
    feature = functools.reduce(operator.getitem, paths[field], features)
    if feature.shape != () or feature.np_dtype not in (object, str, bytes):
        raise InputError(f"source '{spec}': the feature '{field}' of '{name}' is not text.")
    return paths[field]
