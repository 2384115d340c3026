"""Pieces by sentencepiece, unigram and BPE: trained here, or models of others."""

import base64
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import sentencepiece

from lm.config import TokenizerConfig
from lm.errors import InputError
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
    sample,
    symbols_of,
)

# Fixed, because sums over threads round differently with another number of threads.
_TRAIN_THREADS = 8
# Characters that sentencepiece gets at once, and the rest of the line.
_PART_SIZE = 2000
_PART = re.compile(rf'.{{1,{_PART_SIZE}}}[^\n]*\n?', re.DOTALL)
# Sentencepiece writes a space as U+2581, so a U+2581 of the text itself goes through its bytes.
_META_SPACE = '\u2581'


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
        usual = self.specials == Specials() and self.is_text[FIRST:].all()
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

    def byte_ids(self) -> np.ndarray:
        return np.array([i for i in self._text_ids() if self._processor.is_byte(i)], np.int64)

    def _decode(self, ids: np.ndarray) -> str:
        return self._processor.decode(ids.tolist())

    def serialized(self) -> bytes:
        if self.file == SentencePiece.file:
            return self.model
        model = base64.b64encode(self.model).decode()
        fields = {'kind': self.kind, 'specials': dataclasses.asdict(self.specials), 'model': model}
        return json.dumps(fields).encode()


def train(spec: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """Trains a model that loses nothing: no normalisation, no added or removed spaces.

    Raises:
        WrongSize: the text does not support so many pieces, or its characters need more.
        InputError: there is no text.
    """
    lines = sample(texts(), spec.train_bytes)
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
        raise _training_failed(spec.vocab_size, str(error)) from None
    return SentencePiece(model.getvalue())


def _training_failed(vocab_size: int, message: str) -> InputError:
    """Returns one line for what sentencepiece's trainer says in its own terms."""
    if most := re.search(r'too high.*value <= (\d+)', message):
        return WrongSize(vocab_size, int(most[1]))
    if least := re.search(r'smaller than required_chars\. \d+ vs (\d+)', message):
        return WrongSize(vocab_size, int(least[1]))
    place = f'config.tokenizer.vocab_size = {vocab_size}'
    return InputError(f'{place}: sentencepiece cannot train on this text ({message.strip()}).')
