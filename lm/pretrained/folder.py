"""Folders of Hugging Face's form, read as what they may be: damaged, incomplete, or meant to harm.

Nothing is unpickled, no code of a folder is run, and no name in a file leads out of its folder.
"""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from lm.errors import InputError
from lm.writer import atomic_write

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
# Their names of dtypes and numpy's.
DTYPES: dict[str, np.dtype] = {
    'F64': np.dtype(np.float64),
    'F32': np.dtype(np.float32),
    'F16': np.dtype(np.float16),
    'BF16': np.dtype(ml_dtypes.bfloat16),
}
_PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt', '*.pkl', '*.pickle', '*.h5', '*.msgpack')


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON object of a file; raises InputError if it is none."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path}' is damaged, it is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise InputError(f"'{path}' is damaged, it is not a JSON object.")
    return found


def bar(size: int, label: str) -> Any:
    """Shows on stderr, where it is a terminal, how many of so many bytes are done."""
    from tqdm.auto import tqdm

    options = {'unit': 'B', 'unit_scale': True, 'disable': None, 'leave': False}
    return tqdm(total=size, desc=label, **options)


class Weights:
    """The tensors of a folder, which stay on the disk until they are looked at.

    Their names come in the order in which they lie there; read in this order, they are as fast as the disk.

    Attributes:
        shapes: by name.
        dtypes: by name; those that are no floats have none.
    """

    def __init__(self, folder: Path) -> None:
        """Reads the headers.

        Raises:
            InputError: there are none, or one is damaged.
        """
        self._bytes: dict[str, np.ndarray] = {}
        # Of each tensor its file, and how many bytes of all files end with it.
        self._places: dict[str, tuple[Path, int]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        listed, before = _listed(folder), 0
        self._files = [path for path, _ in listed]
        for path, names in listed:
            start, header = _header(path)
            if names is not None and names - header.keys():
                missing = sorted(names - header.keys())[0]
                raise InputError(f"'{path}' lacks '{missing}', which '{INDEX}' says it holds.")
            whole = np.memmap(path, np.uint8, 'r')
            for called in sorted(header, key=lambda name: header[name]['data_offsets']):
                if names is not None and called not in names:
                    continue
                name = _today(called)
                if name in self.shapes:
                    raise InputError(f"'{path}' holds '{name}' twice.")
                begin, end = (start + offset for offset in header[called]['data_offsets'])
                self.shapes[name] = tuple(header[called]['shape'])
                self.dtypes[name] = DTYPES.get(header[called]['dtype'], np.dtype(np.void))
                self._bytes[name] = whole[begin:end]
                self._places[name] = path, before + end
            before += len(whole)
        self._ahead: _Ahead | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor, as a view of its file; raises InputError where it is no array of floats."""
        path, end = self._places[name]
        if self.dtypes[name] not in DTYPES.values():
            raise InputError(
                f"'{path}': the tensor '{name}' is not one of {', '.join(DTYPES)}; quantized models are "
                'not read.'
            )
        if self._ahead is None:
            self._ahead = _Ahead(self._files)
        self._ahead.to(end)
        return self._view(name)

    def _view(self, name: str) -> np.ndarray:
        return self._bytes[name].view(self.dtypes[name]).reshape(self.shapes[name])

    def size(self, name: str) -> int:
        """Returns the bytes of a tensor."""
        return self._bytes[name].nbytes

    def same(self, first: str, second: str) -> bool:
        """Returns whether two tensors have the same numbers; of each, a part at a time is read."""
        if self.shapes[first] != self.shapes[second] or not self.shapes[first]:
            return False
        one, other, step = self._view(first), self._view(second), 4096
        return all(
            np.array_equal(one[start : start + step], other[start : start + step])
            for start in range(0, len(one), step)
        )

    def close(self) -> None:
        """Lets go of the files, as soon as no tensor is used."""
        if self._ahead is not None:
            self._ahead.stop()
        self._bytes.clear()

    def __enter__(self) -> 'Weights':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class _Ahead(threading.Thread):
    """Reads files a little before they are looked at, so that nobody waits for the disk.

    What is read is thrown away: it is then in the system's cache.
    """

    _WINDOW, _PIECE = 256 << 20, 4 << 20

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(daemon=True)
        self._files, self._goal = files, 0
        self._changed = threading.Condition()
        self.start()

    def run(self) -> None:
        done, piece = 0, bytearray(self._PIECE)
        for path in self._files:
            # What is wrong with a file is said by those who need it.
            with contextlib.suppress(OSError), path.open('rb', buffering=0) as file:
                while size := file.readinto(piece):
                    done += size
                    with self._changed:
                        self._changed.wait_for(lambda done=done: self._goal >= done)
                        if self._goal == math.inf:
                            return

    def to(self, place: float) -> None:
        """Reads on, to somewhat after a place in all files."""
        with self._changed:
            self._goal = max(self._goal, place + self._WINDOW)
            self._changed.notify()

    def stop(self) -> None:
        """Reads no more."""
        self.to(math.inf)
        self.join()


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Returns where the tensors of a file begin, and what it says of each; it has been checked."""
    try:
        with safetensors.safe_open(path, framework='numpy'), path.open('rb') as file:
            size = int.from_bytes(file.read(8), 'little')
            header = json.loads(file.read(size))
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"'{path}' is damaged: {error}.") from None
    header.pop('__metadata__', None)
    for name, said in header.items():
        if not isinstance(said, dict):
            raise InputError(f"'{path}' is damaged: it says {said!r} of '{name}'.")
    return 8 + size, header


def _today(name: str) -> str:
    """Returns what a tensor is called since PyTorch's norms have a weight and a bias (BERT's had not)."""
    for old, new in (('gamma', 'weight'), ('beta', 'bias')):
        if name.endswith(f'LayerNorm.{old}'):
            return name.removesuffix(old) + new
    return name


def _listed(folder: Path) -> list[tuple[Path, set[str] | None]]:
    """Returns the files of a folder, and the tensors that each is to hold; None for all of it."""
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX).get('weight_map')
        if not isinstance(index, dict) or not index:
            raise InputError(f"'{folder / INDEX}' is damaged: it has no weight_map.")
        files: dict[str, set[str]] = {}
        for name, file in index.items():
            if not isinstance(file, str) or Path(file).name != file or file in ('', '.', '..'):
                raise InputError(
                    f"'{folder / INDEX}': '{file}' is not the name of a file in that folder."
                )
            files.setdefault(file, set()).add(name)
        for file in files:
            if not (folder / file).is_file():
                raise InputError(f"'{folder}' lacks '{file}', which '{INDEX}' names.")
        return [(folder / file, names) for file, names in files.items()]
    if (folder / SINGLE).is_file():
        return [(folder / SINGLE, None)]
    pickles = sorted(path.name for kind in _PICKLES for path in folder.glob(kind))
    if pickles:
        raise InputError(
            f"'{folder}' holds '{pickles[0]}', which is not read, since reading it can run code: convert "
            f"to safetensors first (in a sandbox, with transformers' save_pretrained)."
        )
    raise InputError(f"'{folder}' holds no weights ({SINGLE} or {INDEX}).")


class Writer:
    """Writes tensors one after the other, into as many files as their size asks for."""

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        limit: int = 5 * 10**9,
    ) -> None:
        """Plans the files.

        Args:
            folder: which exists, and has its last name when all is written.
            shapes: shape and dtype of every tensor, in the order in which they will come.
            limit: bytes of a file, but for a larger tensor.
        """
        self._folder, self._shapes = folder, dict(shapes)
        sizes = {name: _size(*spec) for name, spec in shapes.items()}
        parts: list[list[str]] = [[]]
        filled = 0
        for name, size in sizes.items():
            if parts[-1] and filled + size > limit:
                parts.append([])
                filled = 0
            parts[-1].append(name)
            filled += size
        count = len(parts)
        self._parts = {
            SINGLE if count == 1 else f'model-{i + 1:05}-of-{count:05}.safetensors': part
            for i, part in enumerate(parts)
        }
        self._total = sum(sizes.values())

    def write(self, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
        """Writes them; each comes once, in the order of the plan."""
        with bar(self._total, 'written') as shown:
            self._write(tensors, shown.update)
        if len(self._parts) > 1:
            index = {
                'metadata': {'total_size': self._total},
                'weight_map': {n: file for file, names in self._parts.items() for n in names},
            }
            atomic_write(self._folder / INDEX, json.dumps(index, indent=2) + '\n')

    def _write(
        self, tensors: Iterator[tuple[str, np.ndarray]], advance: Callable[[int], Any]
    ) -> None:
        codes = {dtype: code for code, dtype in DTYPES.items()}
        for file, names in self._parts.items():
            header, end = {'__metadata__': {'format': 'pt'}}, 0
            for name in names:
                shape, dtype = self._shapes[name]
                begin, end = end, end + _size(shape, dtype)
                header[name] = {
                    'dtype': codes[dtype],
                    'shape': list(shape),
                    'data_offsets': [begin, end],
                }
            text = json.dumps(header, separators=(',', ':')).encode()
            text += b' ' * (-len(text) % 8)
            with (self._folder / file).open('wb') as out:
                out.write(len(text).to_bytes(8, 'little') + text)
                for expected in names:
                    name, array = next(tensors)
                    shape, dtype = self._shapes[name]
                    assert (name, array.shape, array.dtype) == (expected, shape, dtype)
                    out.write(np.ascontiguousarray(array).view(np.uint8).data)
                    advance(array.nbytes)


def _size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
