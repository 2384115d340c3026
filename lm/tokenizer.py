"""Text to integers and back: sentencepiece (unigram, BPE), words, bytes, characters, and those of others.

Each says which of its ids are special and which stand for text (`Specials`, `Tokenizer.is_text`). What is
trained here has its special ids at 0 to 3, and is lossless, so that `decode(encode(text)) == text` and
numbers such as bits per byte mean the same for every tokenizer. (A tokenizer without byte fallback keeps it
for the characters or words it knows.)
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm import sentencepiece_tokenizer, words_tokenizer
from lm.config import TokenizerConfig
from lm.errors import InputError, lookup
from lm.sentencepiece_tokenizer import SentencePiece
from lm.tokenizer_base import (
    BOS,
    EOS,
    FIRST,
    PAD,
    UNK,
    Specials,
    Tokenizer,
    WrongSize,
    lengths_of,
    symbols_of,
)
from lm.words_tokenizer import Words

__all__ = [
    'BOS',
    'EOS',
    'KINDS',
    'PAD',
    'UNK',
    'Bytes',
    'Chars',
    'SentencePiece',
    'Specials',
    'Tokenizer',
    'Words',
    'WrongSize',
    'build',
    'from_fields',
    'from_pretrained',
    'lengths_of',
    'load',
    'symbols_of',
]


class Bytes(Tokenizer):
    """Id = byte of the UTF-8 text + 4: 260 ids, nothing to train, nothing unknown."""

    kind = 'bytes'
    vocab_size = FIRST + 256

    def __init__(self):
        self.fingerprint = hashlib.sha256(self.serialized()).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        data = [text.encode() for text in texts]
        ids = np.frombuffer(b''.join(data), np.uint8)
        return np.add(ids, FIRST, dtype=np.int32), lengths_of(data)

    def pieces(self) -> list[bytes]:
        return [bytes([byte]) for byte in range(256)]

    def byte_ids(self) -> np.ndarray:
        return np.flatnonzero(self.is_text)

    def _decode(self, ids: np.ndarray) -> str:
        return (ids - FIRST).astype(np.uint8).tobytes().decode(errors='replace')

    def serialized(self) -> bytes:
        return json.dumps({'kind': self.kind}).encode()


class Chars(Tokenizer):
    """Id = rank of the character among the sorted distinct ones + 4; others are UNK."""

    kind = 'chars'

    def __init__(self, characters: str):
        self.characters = ''.join(sorted(set(characters)))
        self.vocab_size = FIRST + len(self.characters)
        self.fingerprint = hashlib.sha256(self.serialized()).hexdigest()
        self._points = _points(self.characters)
        # One entry more than the largest character, for all that are larger still.
        self._ids = np.full(int(self._points.max(initial=0)) + 2, UNK, np.int32)
        self._ids[self._points] = np.arange(FIRST, self.vocab_size)

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return self._ids.take(_points(''.join(texts)), mode='clip'), lengths_of(texts)

    def pieces(self) -> list[bytes]:
        return [character.encode() for character in self.characters]

    def _decode(self, ids: np.ndarray) -> str:
        return self._points[ids - FIRST].tobytes().decode('utf-32-le')

    def serialized(self) -> bytes:
        return json.dumps({'kind': self.kind, 'characters': self.characters}).encode()


def _points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode('utf-32-le'), np.uint32)


def _no_path(spec: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    raise InputError(
        "config.tokenizer.kind = 'huggingface' is not trained here: set config.tokenizer.path to the "
        'folder of a published model, or to its tokenizer.json.'
    )


# Kind -> the function that makes one from (config, texts).
KINDS: dict[str, Callable[[TokenizerConfig, Callable[[], Iterable[str]]], Tokenizer]] = {
    'unigram': sentencepiece_tokenizer.train,
    'bpe': sentencepiece_tokenizer.train,
    'words': words_tokenizer.train,
    'bytes': lambda spec, texts: Bytes(),
    'chars': lambda spec, texts: Chars(''.join(set().union(*map(set, texts())))),
    'huggingface': _no_path,
}
# Those that read `config.tokenizer.vocab_size` and `symbols`.
WITH_SYMBOLS = ('unigram', 'bpe', 'words')


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
    _check_symbols(spec, spec.kind in WITH_SYMBOLS and not spec.path)
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
            f'config.tokenizer.symbols = {spec.symbols} is for a tokenizer that is trained '
            "(config.tokenizer.kind = 'unigram', 'bpe' or 'words', without a path)."
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
    if fields['kind'] == Words.kind:
        return Words(fields['words'], fields['symbols'], fields['byte_fallback'])
    specials = Specials(
        **fields['specials'] | {'sentinels': tuple(fields['specials']['sentinels'])}
    )
    if fields['kind'] == 'huggingface':
        from lm.pretrained_tokenizer import HuggingFace  # Takes a while to import.

        return HuggingFace(fields['tokenizer'], specials)
    return SentencePiece(base64.b64decode(fields['model']), specials)
