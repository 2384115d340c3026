"""Text to integers and back: sentencepiece (unigram, BPE), bytes, characters, and those of others.

Each says which of its ids are special and which stand for text (`Specials`, `Tokenizer.is_text`). What is
trained here has its special ids at 0 to 3, and is lossless, so that `decode(encode(text)) == text` and
numbers such as bits per byte mean the same for every tokenizer. (A tokenizer without byte fallback keeps it
for the characters it knows.)
"""

import base64
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import sentencepiece

from lm.config import TokenizerConfig
from lm.errors import InputError, lookup

PAD, BOS, EOS, UNK = range(4)  # Of what is trained here.
_FIRST = 4  # The first id of text then.

# Fixed, because sums over threads round differently with another number of threads.
_TRAIN_THREADS = 8
# Characters. Below sentencepiece's limit of 4192 bytes a line, above which it drops the line.
_TRAIN_LINE = 1000
# Characters that sentencepiece gets at once, and the rest of the line.
_PART_SIZE = 2000
_PART = re.compile(rf'.{{1,{_PART_SIZE}}}[^\n]*\n?', re.DOTALL)
# Sentencepiece writes a space as U+2581, so a U+2581 of the text itself goes through its bytes.
_META_SPACE = '\u2581'


@dataclasses.dataclass(frozen=True)
class Specials:
    """The ids that stand for no text; by default those of what is trained here.

    They may stand anywhere, and one id may serve as several: GPT-2's 50256 is its BOS, EOS and PAD.

    Attributes:
        pad: fills rows. EOS where there is none of its own: nothing reads what padding is.
        bos: begins a document; and what the decoder of an encoder-decoder writes.
        eos: ends it.
        unk: what the vocabulary lacks; -1 where it lacks nothing.
        mask: hides a token; -1 for none.
        sentinels: stand for spans, in the order of their use.
    """

    pad: int = PAD
    bos: int = BOS
    eos: int = EOS
    unk: int = UNK
    mask: int = -1
    sentinels: tuple[int, ...] = ()

    @property
    def ids(self) -> list[int]:
        """All that there are, ascending."""
        found = {self.pad, self.bos, self.eos, self.unk, self.mask, *self.sentinels}
        return sorted(found - {-1})

    def completed(self, first: int) -> 'Specials':
        """Returns these with a PAD, a BOS and an EOS.

        >>> Specials(pad=-1, bos=-1, eos=1, unk=2).completed(first=300)
        Specials(pad=1, bos=300, eos=1, unk=2)

        Args:
            first: the first id that is free, for BOS and EOS where they are -1.
        """
        free = itertools.count(first)
        bos, eos = (next(free) if i < 0 else i for i in (self.bos, self.eos))
        return dataclasses.replace(self, pad=eos if self.pad < 0 else self.pad, bos=bos, eos=eos)


class Tokenizer:
    """What every kind offers.

    Attributes:
        kind: the entry in `KINDS`.
        vocab_size: number of ids; ids are 0 <= id < vocab_size.
        specials: which of them are special.
        fingerprint: SHA-256, hexadecimal, of all that decides the ids.
        before: ids that a published tokenizer puts before a text; `encode` puts none.
        splits_at_newlines: a text cut after a newline has the ids of its parts (or others as good,
            where segmentations tie), so that a long one may be encoded in parts.
    """

    kind: ClassVar[str] = ''
    file: str = 'tokenizer.json'
    vocab_size: int
    specials: Specials = Specials()
    fingerprint: str
    before: tuple[int, ...] = ()
    splits_at_newlines: bool = True

    @functools.cached_property
    def is_text(self) -> np.ndarray:
        """Which ids stand for text, bool [vocab_size]."""
        return np.arange(self.vocab_size) >= _FIRST

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of the text, int32 [tokens], without BOS and EOS."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of texts one after the other, int32 [tokens], and how many each has.

        >>> Bytes().encode_batch(['Ab', '', 'c'])
        ([69, 102, 103], [2, 0, 1])

        It releases the interpreter's lock while it works, so that threads do it side by side.

        Args:
            texts: at least one.

        Returns:
            The ids, and their numbers, int64 [texts].
        """
        raise NotImplementedError

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """Returns the text of the ids.

        Special ids, and ids outside the vocabulary (a model's may be padded), stand for no text.
        Bytes that are not UTF-8, as at the cut end of a sample, become U+FFFD.
        """
        ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).reshape(-1)
        ids = ids[(ids >= 0) & (ids < self.vocab_size)]
        return self._decode(ids[self.is_text[ids]])

    def pieces(self) -> list[bytes]:
        """Returns the UTF-8 text of each id that stands for text, ascending.

        They are parts of a character where ids are bytes.
        """
        raise NotImplementedError

    def save(self, workdir: str | Path) -> Path:
        """Writes the tokenizer into a folder and returns the file; `load` reads it back."""
        path = Path(workdir) / self.file
        path.write_bytes(self.serialized())
        return path

    def _decode(self, ids: np.ndarray) -> str:
        raise NotImplementedError

    def serialized(self) -> bytes:
        raise NotImplementedError


class Bytes(Tokenizer):
    """Id = byte of the UTF-8 text + 4: 260 ids, nothing to train, nothing unknown."""

    kind = 'bytes'
    vocab_size = _FIRST + 256

    def __init__(self):
        self.fingerprint = hashlib.sha256(self.serialized()).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        data = [text.encode() for text in texts]
        ids = np.frombuffer(b''.join(data), np.uint8)
        return np.add(ids, _FIRST, dtype=np.int32), lengths_of(data)

    def pieces(self) -> list[bytes]:
        return [bytes([byte]) for byte in range(256)]

    def _decode(self, ids: np.ndarray) -> str:
        return (ids - _FIRST).astype(np.uint8).tobytes().decode(errors='replace')

    def serialized(self) -> bytes:
        return json.dumps({'kind': self.kind}).encode()


class Chars(Tokenizer):
    """Id = rank of the character among the sorted distinct ones + 4; others are UNK."""

    kind = 'chars'

    def __init__(self, characters: str):
        self.characters = ''.join(sorted(set(characters)))
        self.vocab_size = _FIRST + len(self.characters)
        self.fingerprint = hashlib.sha256(self.serialized()).hexdigest()
        self._points = _points(self.characters)
        # One entry more than the largest character, for all that are larger still.
        self._ids = np.full(int(self._points.max(initial=0)) + 2, UNK, np.int32)
        self._ids[self._points] = np.arange(_FIRST, self.vocab_size)

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return self._ids.take(_points(''.join(texts)), mode='clip'), lengths_of(texts)

    def pieces(self) -> list[bytes]:
        return [character.encode() for character in self.characters]

    def _decode(self, ids: np.ndarray) -> str:
        return self._points[ids - _FIRST].tobytes().decode('utf-32-le')

    def serialized(self) -> bytes:
        return json.dumps({'kind': self.kind, 'characters': self.characters}).encode()


def _points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode('utf-32-le'), np.uint32)


def lengths_of(parts: Sequence[Sized]) -> np.ndarray:
    """Returns the length of each part, int64 [parts]."""
    return np.fromiter(map(len, parts), np.int64, len(parts))


class SentencePiece(Tokenizer):
    """A sentencepiece model, trained here or by others, with the ids that it has.

    One of others may lack a BOS or an EOS, which then stand after its last id.

    Attributes:
        model: what sentencepiece wrote.
    """

    file = 'tokenizer.model'

    def __init__(self, model: bytes, specials: Specials | None = None):
        """Reads a serialized model.

        Args:
            model: what sentencepiece writes.
            specials: where they are not, or not all, in the model.

        Raises:
            RuntimeError: it is no model.
        """
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        processor, count = self._processor, self._processor.vocab_size()
        if specials is None:
            own = processor.pad_id(), processor.bos_id(), processor.eos_id(), processor.unk_id()
            self.specials = Specials(*own).completed(count)
        else:
            self.specials, self.file = specials, Tokenizer.file
        self.vocab_size = 1 + max(count - 1, *self.specials.ids)
        self.is_text = np.zeros(self.vocab_size, bool)
        kinds = processor.is_control, processor.is_unknown, processor.is_unused
        self.is_text[:count] = [not any(kind(i) for kind in kinds) for i in range(count)]
        self.is_text[self.specials.ids] = False
        usual = self.specials == Specials() and self.is_text[_FIRST:].all()
        known = b'' if usual else repr((self.specials, self.is_text.tobytes())).encode()
        self.fingerprint = hashlib.sha256(model + known).hexdigest()
        # While they are found out.
        self.splits_at_newlines, self._meta_space = False, None
        self.splits_at_newlines = self._may_split()
        pieces = [processor.piece_to_id(f'<0x{byte:02X}>') for byte in _META_SPACE.encode()]
        if all(map(processor.is_byte, pieces)):
            # Int32 [3]; a model without bytes or with spaces of its own has none.
            self._meta_space = np.array(pieces, np.int32)
            text = f' a{_META_SPACE} a '
            if self.decode(self.encode(text)) != text:
                self._meta_space = None

    @functools.cached_property
    def kind(self) -> str:
        """`bpe` scores a piece by its rank, a whole number; `unigram` by its log probability."""
        scores = map(self._processor.get_score, self._text_ids())
        return 'bpe' if all(score == int(score) for score in scores) else 'unigram'

    def _text_ids(self) -> list[int]:
        return np.flatnonzero(self.is_text).tolist()

    def _may_split(self) -> bool:
        """Finds `splits_at_newlines`: no piece goes over a newline, or over the space it may become."""
        parts = [self.encode(text).tolist() for text in ('a', '\n', ' a', 'a\n a')]
        kept = self.decode(self.encode('\n')) == '\n'
        pieces = self._processor.id_to_piece(self._text_ids())
        over = (
            len(piece) > 1 and '\n' in piece if kept else _META_SPACE in piece[1:]
            for piece in pieces
        )
        return parts[0] + parts[1] + parts[2] == parts[3] and not any(over)

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        cut = [self._parts(text) for text in texts]
        parts = list(itertools.chain.from_iterable(cut))
        found = self._processor.encode(parts, out_type='numpy', num_threads=1)
        if self._meta_space is not None:
            for index, part in enumerate(parts):
                if part == _META_SPACE:
                    found[index] = self._meta_space
        counts = lengths_of(cut)
        lengths = np.add.reduceat(lengths_of(found), np.cumsum(counts) - counts)
        return np.concatenate(found).astype(np.int32, copy=False), lengths

    def _parts(self, text: str) -> list[str]:
        """Cuts the text, at least one part; a U+2581 that goes through bytes is a part of its own."""
        if self._meta_space is not None and _META_SPACE in text:
            pieces = filter(None, re.split(f'({_META_SPACE})', text))
        else:
            pieces = [text]
        if not self.splits_at_newlines or len(text) <= _PART_SIZE:
            return list(pieces)
        # Over a long text the processor's float32 sums of scores lose their last digits, and its BPE
        # slows down.
        return [part for piece in pieces for part in _PART.findall(piece)]

    def pieces(self) -> list[bytes]:
        processor, found = self._processor, []
        for index in self._text_ids():
            piece = processor.id_to_piece(index)
            if processor.is_byte(index):  # Written <0xE4>.
                found.append(bytes([int(piece[3:5], 16)]))
            else:
                found.append(piece.replace(_META_SPACE, ' ').encode())
        return found

    def _decode(self, ids: np.ndarray) -> str:
        return self._processor.decode(ids.tolist())

    def serialized(self) -> bytes:
        if self.file == SentencePiece.file:
            return self.model
        model = base64.b64encode(self.model).decode()
        fields = {'kind': self.kind, 'specials': dataclasses.asdict(self.specials), 'model': model}
        return json.dumps(fields).encode()


def _build_sentencepiece(spec: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """Trains a model that loses nothing: no normalisation, no added or removed spaces."""
    lines = _sample(texts(), spec.train_bytes)
    if not lines:
        raise InputError('the tokenizer has no text to train on: config.data.train is empty.')
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=spec.kind,
            vocab_size=spec.vocab_size,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNK,
            byte_fallback=spec.byte_fallback,
            # Without byte fallback every character is worth a piece: else it is unknown.
            character_coverage=0.9995 if spec.byte_fallback else 1.0,
            normalization_rule_name='identity',
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=symbols_of(spec),
            num_threads=_TRAIN_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(_training_failed(spec.vocab_size, str(error))) from None
    return SentencePiece(model.getvalue())


def symbols_of(spec: TokenizerConfig) -> list[str]:
    """Returns the texts that are one token each wherever they stand."""
    return ['\n', '\t', *spec.symbols]


def _sample(texts: Iterable[str], limit: int) -> list[str]:
    """Returns lines of the texts, evenly spread, of `limit` / 2 to `limit` bytes if there are more."""
    kept, total, step = [], 0, 1
    for number, line in enumerate(line for text in texts for line in _lines(text)):
        if number % step:
            continue
        kept.append(line)
        total += len(line.encode())
        while total > limit and len(kept) > 1:
            kept, step = kept[::2], 2 * step
            total = sum(len(line.encode()) for line in kept)
    return kept


def _lines(text: str) -> Iterator[str]:
    for line in text.split('\n'):
        for start in range(0, len(line), _TRAIN_LINE):
            yield line[start : start + _TRAIN_LINE]


def _training_failed(vocab_size: int, message: str) -> str:
    """Returns one line for what sentencepiece's trainer says in its own terms."""
    place = f'config.tokenizer.vocab_size = {vocab_size}'
    if most := re.search(r'too high.*value <= (\d+)', message):
        return (
            f'{place} is more than the training text allows; the largest that works is {most[1]}.'
        )
    if least := re.search(r'smaller than required_chars\. \d+ vs (\d+)', message):
        return (
            f'{place} is less than the characters and special ids of the training text need; '
            f'the smallest that works is {least[1]}.'
        )
    return f'{place}: sentencepiece cannot train on this text ({message.strip()}).'


def _no_path(spec: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    raise InputError(
        "config.tokenizer.kind = 'huggingface' is not trained here: set config.tokenizer.path to the "
        'folder of a published model, or to its tokenizer.json.'
    )


# Kind -> the function that makes one from (config, texts).
KINDS: dict[str, Callable[[TokenizerConfig, Callable[[], Iterable[str]]], Tokenizer]] = {
    'unigram': _build_sentencepiece,
    'bpe': _build_sentencepiece,
    'bytes': lambda spec, texts: Bytes(),
    'chars': lambda spec, texts: Chars(''.join(set().union(*map(set, texts())))),
    'huggingface': _no_path,
}


def build(spec: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """Returns the tokenizer of a config, trained on the texts where it needs training.

    Args:
        spec: the config; with a `path`, the file or folder given is used as it is (`from_pretrained`), and
            its kind is the file's.
        texts: called without arguments for one pass over the training text, such as
            `source.documents`. Not called when nothing is to be trained.

    Raises:
        InputError: the kind is unknown, the path is no tokenizer, there is no text, or the
            vocabulary size does not fit the text, or symbols cannot be tokens.
    """
    maker = lookup(KINDS, spec.kind, 'config.tokenizer.kind')
    _check_symbols(spec, maker is _build_sentencepiece and not spec.path)
    if spec.path:
        return from_pretrained(spec.path, 'config.tokenizer.path')
    tokenizer = maker(spec, texts)
    if not tokenizer.is_text.any():
        raise InputError('the tokenizer has no text to train on: config.data.train is empty.')
    return tokenizer


def _check_symbols(spec: TokenizerConfig, trained: bool) -> None:
    """Raises InputError where `config.tokenizer.symbols` cannot be tokens."""
    if spec.symbols and not trained:
        raise InputError(
            f'config.tokenizer.symbols = {spec.symbols} is for a sentencepiece tokenizer that is trained '
            "(config.tokenizer.kind = 'unigram' or 'bpe', without a path)."
        )
    for symbol in spec.symbols:
        if symbol.split() != [symbol]:
            raise InputError(
                f'config.tokenizer.symbols: {symbol!r} is not a text without white space, such as '
                "'<BT>'."
            )


def from_pretrained(path: str | Path, place: str = 'tokenizer', **known: Any) -> Tokenizer:
    """Returns the tokenizer of others, with their ids, or one that `Tokenizer.save` wrote.

    Args:
        path: a sentencepiece `.model`; a `tokenizer.json`, beside which the other files of its folder are
            read; or a folder of Hugging Face's, with `tokenizer.json`, `tokenizer.model`, `spiece.model`,
            `vocab.txt` or `vocab.json` and `merges.txt`, of which the first that is there is read.
        place: what messages call it.
        known: special ids that the caller knows better, fields of `Specials`.

    The special ids of a folder are, the first that there is: for BOS the `decoder_start_token_id` of
    config.json; what `bos_token`, `cls_token` and so on name (`special_tokens_map.json`,
    `tokenizer_config.json`); `bos_token_id` and so on of config.json; those of usual names, such as `<s>`.
    Where there is no BOS, EOS is it; where there is no EOS either, they stand after the last id.

    Raises:
        InputError: it cannot be read.
    """
    path = Path(path)
    if path.suffix == '.json' or path.is_dir():
        from lm import pretrained_tokenizer  # Hugging Face's library takes a while to import.

        return pretrained_tokenizer.from_pretrained(path, place, **known)
    tokenizer = _read(path, place)
    if known:
        specials = dataclasses.replace(tokenizer.specials, **known)
        tokenizer = SentencePiece(path.read_bytes(), specials)
    return tokenizer


# What `Tokenizer.save` writes, one of them.
FILES = (SentencePiece.file, Tokenizer.file)


def load(workdir: str | Path) -> Tokenizer:
    """Returns the tokenizer that `Tokenizer.save` wrote into the folder.

    Raises:
        InputError: the folder has none, or it cannot be read.
    """
    for name in FILES:
        if (Path(workdir) / name).exists():
            return _read(Path(workdir) / name, 'tokenizer')
    raise InputError(f"'{workdir}' holds no tokenizer ({SentencePiece.file} or {Tokenizer.file}).")


def _read(path: Path, place: str) -> Tokenizer:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{place} = '{path}' cannot be read: {error.strerror}.") from None
    try:
        if path.suffix != '.json':
            return SentencePiece(data)
        return from_fields(json.loads(data))
    except (RuntimeError, ValueError, KeyError, TypeError):
        raise InputError(f"{place} = '{path}' is not a tokenizer: the file is damaged.") from None


def from_fields(fields: dict[str, Any]) -> Tokenizer:
    """Returns the tokenizer of a `tokenizer.json` that `Tokenizer.save` wrote."""
    if fields['kind'] == Bytes.kind:
        return Bytes()
    if fields['kind'] == Chars.kind:
        return Chars(fields['characters'])
    specials = Specials(
        **fields['specials'] | {'sentinels': tuple(fields['specials']['sentinels'])}
    )
    if fields['kind'] == 'huggingface':
        from lm.pretrained_tokenizer import HuggingFace  # Takes a while to import.

        return HuggingFace(fields['tokenizer'], specials)
    return SentencePiece(base64.b64decode(fields['model']), specials)
