"""Text in blocks, tokenized side by side in threads; and what stands beside the tokens."""

import collections
import concurrent.futures
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from lm import codes as control
from lm.data.slices import Document
from lm.tokenizer import Tokenizer

# Characters that one thread tokenizes at a time. Where shards end follows from it.
SIZE = 1 << 19
# What `str.split` takes for white space; all beyond is none.
_IS_SPACE = np.array([chr(point).isspace() for point in range(0x3002)])
# Those of several bytes, as UTF-8 of three bytes and as one number.
_WIDE_SPACES = [
    int.from_bytes(chr(point).encode().ljust(3, b'\0'))
    for point in np.flatnonzero(_IS_SPACE).tolist()
    if point > 0x7F
]


class Block(NamedTuple):
    """Documents, of which the first may have begun and the last may go on in another block.

    Attributes:
        texts: the documents, or what of them is in this block.
        begun: the first text goes on from the block before.
        open: the last text goes on in the next block.
        invalid_bytes: of the documents that begin here.
        first: the number of the first document.
    """

    texts: list[str]
    begun: bool
    open: bool
    invalid_bytes: int
    first: int = 0


class Encoded(NamedTuple):
    """A block's tokens [n], where in them documents end int64 [documents], and counts to add up."""

    tokens: np.ndarray
    ends: np.ndarray
    counts: dict[str, int]


def cut(documents: Iterable[Document], at_newlines: bool) -> Iterator[Block]:
    """Yields blocks of about `SIZE` characters; long documents are cut, if they may be."""
    texts, begun, size, invalid, first = [], False, 0, 0, 0
    for number, document in enumerate(documents):
        text = document.text
        first = first if texts else number
        invalid += document.invalid_bytes
        start = 0
        while start < len(text):
            stop = text.find('\n', start + SIZE) + 1 if at_newlines else 0
            stop = stop or len(text)
            texts.append(text[start:stop])
            size += stop - start
            start = stop
            if size >= SIZE:
                is_open = stop < len(text)
                yield Block(texts, begun, is_open, invalid, first)
                texts, begun, size, invalid, first = [], is_open, 0, 0, number
    if texts:
        yield Block(texts, begun, False, invalid, first)


def encode(block: Block, tokenizer: Tokenizer, dtype: np.dtype, paired: bool = False) -> Encoded:
    """Returns the block's tokens; of pairs only the second sides count as bytes and words."""
    ids, lengths = tokenizer.encode_batch(block.texts)
    # BOS, ids, EOS of each text, but without the BOS of a begun one and the EOS of an open one.
    ends = np.cumsum(lengths + 2) - block.begun
    begins = (ends - lengths - 2)[block.begun :]
    tokens = np.full(ends[-1], tokenizer.specials.eos, dtype)
    tokens[begins] = tokenizer.specials.bos
    is_text = np.ones(len(tokens), bool)
    is_text[begins] = is_text[ends - 1] = False
    tokens[is_text] = ids
    if block.open:
        tokens, ends = tokens[:-1], ends[:-1]
    predicted = block.texts[1 - block.first % 2 :: 2] if paired else block.texts
    text = '\n'.join(predicted)
    data = text.encode()
    counts = {
        'tokens': len(tokens),
        'num_documents': len(ends),
        'num_bytes': len(data) - max(len(predicted) - 1, 0),
        'num_words': count_words(text, data),
        'invalid_bytes': block.invalid_bytes,
    }
    return Encoded(tokens, ends, counts)


def count_words(text: str, data: bytes) -> int:
    """Returns `len(text.split())`, ten times faster and without the interpreter's lock.

    Args:
        text: what `data` is the UTF-8 of.
        data: where most of it is ASCII, it is all that is looked at.
    """
    points = np.frombuffer(data, np.uint8)
    begins = np.flatnonzero(points > 0xC1)  # Of characters of several bytes.
    if 16 * len(begins) > len(data):
        points = np.frombuffer(text.encode('utf-32-le'), np.uint32)
        return _ends_of_words(_IS_SPACE.take(points, mode='clip'))
    # 9 to 13 and 28 to 32; what is less wraps around.
    space = (points - np.uint8(9) < 5) | (points - np.uint8(28) < 5)
    if len(begins):
        # At least two bytes, of which the second ends the character or not.
        third = np.where(points[begins] > 0xDF, points.take(begins + 2, mode='clip'), 0)
        codes = (
            points[begins].astype(np.int32) << 16 | points[begins + 1].astype(np.int32) << 8 | third
        )
        wide = np.isin(codes, _WIDE_SPACES)
        for byte in (0, 1):
            space[begins[wide] + byte] = True
        space[begins[wide & (third > 0)] + 2] = True
    return _ends_of_words(space)


def _ends_of_words(space: np.ndarray) -> int:
    """Returns how many runs of anything but space there are; bool [characters]."""
    return int(np.count_nonzero(space[:-1] < space[1:])) + (len(space) > 0 and not space[-1])


Item, Made = TypeVar('Item'), TypeVar('Made')


def in_order(make: Callable[[Item], Made], items: Iterable[Item], workers: int) -> Iterator[Made]:
    """Yields `make(item)` of each item, in order, made in threads.

    Threads are enough, since sentencepiece and numpy release the interpreter's lock. At most four
    items a thread are under way, so that none waits while the caller has something else to do.
    """
    waiting: collections.deque[concurrent.futures.Future[Made]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) == 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# --- what stands beside the tokens ---------------------------------------------------------------


class Labels:
    """The labels of the documents that pass.

    Attributes:
        names: those seen, with the number of each.
        numbers: of each document that has one.
    """

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.numbers: list[int] = []

    def noted(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            if document.label:
                self.numbers.append(self.names.setdefault(document.label, len(self.names)))
            yield document


class Codes:
    """The tokens of the codes of documents that pass."""

    def __init__(self, ids: Mapping[str, int], tokenizer: Tokenizer, place: str) -> None:
        self._ids, self._tokenizer, self._place = ids, tokenizer, place
        self._tokens, self._offsets = array('i'), array('q', [0])

    def noted(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yields the documents."""
        for document in documents:
            names = [*document.codes, *control.of_length(document.text, self._ids)]
            encode = self._tokenizer.encode
            self._tokens.extend(control.tokens(names, self._ids, encode, self._place))
            self._offsets.append(len(self._tokens))
            yield document

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns `codes` and `code_offsets` of `TokenizedSplit`."""
        return {
            'codes': np.array(self._tokens, np.int32),
            'code_offsets': np.array(self._offsets, np.int64),
        }
