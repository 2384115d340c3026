"""Tokenizers of others: Hugging Face's `tokenizers`, and the folders that its models are published in.

Of a folder only JSON, text and sentencepiece files are read: those that are named here, and none that they
name. Nothing in it is run or unpickled.
"""

import copy
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from lm.errors import InputError
from lm.tokenizer import SentencePiece, Specials, Tokenizer, from_fields, lengths_of

# What a folder may hold, the first that is there; by it, what it must be of where its name is known
# (`tokenizer_class`, or the `model_type` of config.json): others do more to the text than these files say.
_LIKE_BERT = {
    'bert',
    'distilbert',
    'electra',
    'mobilebert',
    'convbert',
    'funnel',
    'lxmert',
    'mpnet',
}
_LIKE_GPT2 = {'gpt2', 'roberta', 'bart', 'opt', 'longformer', 'led', 'codegen', 'deberta', 'gptneo'}
_LIKE_T5 = {'t5', 'mt5', 'umt5', 'longt5', 'switchtransformers'}
_LIKE_LLAMA = {'llama', 'mistral', 'mixtral', 'gemma', 'gemma2'}
_FILES: dict[str, set[str]] = {
    'tokenizer.json': set(),
    'tokenizer.model': _LIKE_T5 | _LIKE_LLAMA,
    'spiece.model': _LIKE_T5 | _LIKE_LLAMA,
    'vocab.txt': _LIKE_BERT,
    'vocab.json': _LIKE_GPT2,  # With merges.txt.
}
# Names of special tokens, where no file says which is which.
_USUAL = {
    'pad': ('<pad>', '[PAD]'),
    'bos': ('<s>', '[CLS]', '<bos>', '<|begin_of_text|>', '<|endoftext|>'),
    'eos': ('</s>', '[SEP]', '<eos>', '<|end_of_text|>', '<|endoftext|>'),
    'unk': ('<unk>', '[UNK]'),
    'mask': ('<mask>', '[MASK]'),
}
# Whose tokenizers put a BOS before a text, where no file says so.
_BEGINS = _LIKE_LLAMA | {'opt'}
_LIKE_ROBERTA = {'roberta', 'bart'}  # Byte-level BPE between <s> and </s>.
_SENTINEL = re.compile(r'▁?<extra_id_(\d+)>')
_T5_SENTINELS = 100  # Where `extra_ids` is not said.
# What of an added token is read.
_ADDED = ('content', 'special', 'single_word', 'lstrip', 'rstrip', 'normalized')
_MOST_IDS = 1 << 24  # Beyond, a file is damaged.
# Pre-tokenizers that drop white space, and those that after them see no more than one word.
_DROPS_SPACE = {'BertPreTokenizer', 'Whitespace', 'WhitespaceSplit'}
_OF_A_WORD = _DROPS_SPACE | {'Punctuation', 'Digits', 'Metaspace'}
# Normalizers that change characters whatever stands on the other side of a newline.
_OF_A_LINE = {
    *('BertNormalizer', 'Lowercase', 'StripAccents', 'Precompiled', 'Nmt'),
    *('NFC', 'NFD', 'NFKC', 'NFKD'),
}


class HuggingFace(Tokenizer):
    """What a `tokenizer.json` of Hugging Face's describes.

    Special tokens that are written out in a text are text, unless the model's own pieces are such.

    Attributes:
        ids: of all tokens.
        free: the id after the last of them.
        own: special ids by the usual names, -1 for none.
    """

    kind = 'huggingface'

    def __init__(self, fields: dict[str, Any], specials: Specials | None = None):
        """Builds it.

        Args:
            fields: of the file. What it says of padding, truncation and BPE dropout is left out, since
                ids do not depend on other texts, on lengths or on chance.
            specials: the special ids; None for those of the usual names.

        Raises:
            ValueError: they are no tokenizer.
        """
        self._fields = {**fields, 'truncation': None, 'padding': None}
        if isinstance(fields.get('model'), dict) and 'dropout' in fields['model']:
            self._fields['model'] = {**fields['model'], 'dropout': None}
        self._tokenizer = _made(json.dumps(self._fields))
        self._tokenizer.encode_special_tokens = True
        self.ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.free = 1 + max(self.ids.values(), default=-1)
        if self.free > _MOST_IDS:
            raise ValueError(f'{self.free} ids are more than a vocabulary has')
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {i for i, token in added.items() if not token.special}
        self._special = [i for i, token in added.items() if token.special]
        model = self._fields['model']
        unk = model.get('unk_id')
        unk = self.ids.get(model.get('unk_token') or '', -1) if unk is None else unk
        whole, text = (
            self._tokenizer.encode('a', add_special_tokens=on).ids for on in (True, False)
        )
        starts = (i for i in range(len(whole)) if whole[i : i + len(text)] == text)
        self.before = tuple(whole[: next(starts, 0)])
        self.own = _own({added[i].content: i for i in self._special}, self.ids, unk)
        self.splits_at_newlines = self._may_split()
        self._take(specials or self.own.completed(self.free))

    def with_specials(self, specials: Specials) -> 'HuggingFace':
        """Returns it with other special ids."""
        made = copy.copy(self)
        made._take(specials)
        return made

    def within(self, rows: int) -> 'HuggingFace':
        """Returns it without the special ids that a model of so many rows has no vector for.

        BART's for summaries lack that of the mask. An id of text beyond the rows stays, and does not fit.
        """
        beyond = {token for token, index in self.ids.items() if index >= rows}
        if not beyond or any(self.is_text[self.ids[token]] for token in beyond):
            return self
        model = self._fields['model']
        vocab = {token: index for token, index in model['vocab'].items() if token not in beyond}
        added = [token for token in self._fields['added_tokens'] if token['content'] not in beyond]
        fields = {**self._fields, 'model': {**model, 'vocab': vocab}, 'added_tokens': added}
        kept = dataclasses.asdict(self.specials)
        kept |= {role: -1 for role in ('unk', 'mask') if kept[role] >= rows}
        kept['sentinels'] = tuple(index for index in kept['sentinels'] if index < rows)
        return HuggingFace(fields, Specials(**kept))

    def _take(self, specials: Specials) -> None:
        self.specials = specials
        self.vocab_size = max(self.free, 1 + max(specials.ids))
        self.is_text = np.zeros(self.vocab_size, bool)
        self.is_text[[*self.ids.values()]] = True
        self.is_text[[*self._special, *specials.ids]] = False
        self.fingerprint = hashlib.sha256(self.serialized()).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [encoding.ids for encoding in encoded]
        return np.concatenate([np.array(part, np.int32) for part in ids]), lengths_of(ids)

    def pieces(self) -> list[bytes]:
        """Returns the UTF-8 text of each id that stands for text, ascending.

        Where spaces are no part of ids, as in WordPiece, one that begins a word has a space before it.
        """
        model, decoder = self._fields['model'], self._fields.get('decoder')
        table = byte_table() if 'ByteLevel' in self._types('decoder', 'pre_tokenizer') else {}
        prefix = model.get('continuing_subword_prefix') or ''
        suffix = model.get('end_of_word_suffix') or ''
        words = prefix or isinstance(self._tokenizer.model, models.WordLevel)
        meta_space = '▁' if '▁' in str(decoder) else ' '

        def piece(index: int) -> bytes:
            token = self._tokenizer.id_to_token(index)
            if index in self._added:
                return token.encode()
            if table and set(token) <= table.keys():
                return bytes(table[character] for character in token)
            if model.get('byte_fallback') and re.fullmatch('<0x[0-9A-F]{2}>', token):
                return bytes([int(token[3:5], 16)])
            if words:
                goes_on = prefix and token.startswith(prefix)
                token = token[len(prefix) :] if goes_on else f' {token}'
            if suffix and token.endswith(suffix):
                token = token[: -len(suffix)] + ' '
            return token.replace(meta_space, ' ').encode()

        return [piece(index) for index in np.flatnonzero(self.is_text).tolist()]

    def byte_ids(self) -> np.ndarray:
        if not self._fields['model'].get('byte_fallback'):
            return np.zeros(0, np.int64)
        found = [self.ids.get(f'<0x{byte:02X}>', -1) for byte in range(256)]
        return np.array([i for i in found if i >= 0 and self.is_text[i]], np.int64)

    def _decode(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    def serialized(self) -> bytes:
        specials = dataclasses.asdict(self.specials)
        fields = {'kind': self.kind, 'specials': specials, 'tokenizer': self._fields}
        return json.dumps(fields).encode()

    def _types(self, *parts: str) -> set[str]:
        return {step.get('type', '') for part in parts for step in steps_of(self._fields.get(part))}

    def _may_split(self) -> bool:
        """Finds `splits_at_newlines`: true only where it follows from what the parts do."""
        steps = [*steps_of(self._fields.get('pre_tokenizer'))]
        return (
            bool(steps)
            and steps[0].get('type') in _DROPS_SPACE
            and all(step.get('prepend_scheme', 'always') == 'always' for step in steps)
            and self._types('pre_tokenizer') <= _OF_A_WORD
            and self._types('normalizer') <= _OF_A_LINE
            and not self._added
        )


def _made(text: str) -> tokenizers.Tokenizer:
    """Returns the library's tokenizer of a JSON text; raises ValueError where it is none."""
    made = _by_library(tokenizers.Tokenizer.from_str, text)
    _by_library(made.encode, 'a \U0010ffff')  # The unknown token may not be there.
    return made


def _by_library(call: Callable[..., Any], *arguments: Any) -> Any:
    """Returns `call(*arguments)`; raises ValueError with what the library says."""
    try:
        return call(*arguments)
    except BaseException as error:  # What Rust calls a panic is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != 'PanicException':
            raise
        raise ValueError(' '.join(str(error).split())) from None


def steps_of(part: Any) -> Iterator[dict[str, Any]]:
    """Yields the parts of a normalizer, a pre-tokenizer or a decoder that are no sequences."""
    if not part:
        return
    inner = [part[k] for k in ('normalizers', 'pretokenizers', 'decoders') if k in part]
    if not inner:
        yield part
    for step in inner[0] if inner else ():
        yield from steps_of(step)


@functools.cache
def byte_table() -> dict[str, int]:
    """Returns the bytes by the characters that stand for them in byte-level BPE (Radford et al. 2019).

    Those that can be seen stand for themselves, the others are U+0100 and what follows.
    """
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted({*range(256)} - {*seen})
    return {chr(b): b for b in seen} | {chr(256 + i): b for i, b in enumerate(others)}


def _own(named: Mapping[str, int], ids: Mapping[str, int], unk: int) -> Specials:
    """Returns what can be told from names; -1 where there is none.

    Args:
        named: the special tokens.
        ids: all tokens, of which sentinels may be any.
        unk: the model's, or -1.
    """
    found = {
        role: next((named[name] for name in names if name in named), -1)
        for role, names in _USUAL.items()
    }
    if unk >= 0:
        found['unk'] = unk
    numbers = {int(m[1]): i for name, i in ids.items() if (m := _SENTINEL.fullmatch(name))}
    return Specials(**found, sentinels=tuple(numbers[n] for n in sorted(numbers)))


# --- folders ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Folder:
    """What the small files of a folder say.

    Attributes:
        path: the folder.
        names: the content of each special token, by key such as `bos_token`.
        options: `tokenizer_config.json`.
        model: `config.json`.
        added: tokens outside the vocabulary, by id: `content`, `special` and where they are found.
    """

    path: Path
    names: Mapping[str, str]
    options: Mapping[str, Any]
    model: Mapping[str, Any]
    added: Mapping[int, Mapping[str, Any]]

    @property
    def kind(self) -> str:
        """What it is of, such as `gpt2`; '' where it does not say."""
        name = str(self.options.get('tokenizer_class') or '').removesuffix('Fast')
        name = name.removesuffix('Tokenizer')
        if not name or name in ('PreTrained', 'TokenizersBackend'):
            name = str(self.model.get('model_type') or '')
        return re.sub('[^a-z0-9]', '', name.lower())


def from_pretrained(path: str | Path, place: str = 'tokenizer', **known: Any) -> Tokenizer:
    """Returns the tokenizer of a published model; see `lm.tokenizer.from_pretrained`."""
    Specials(**known)  # A field that there is not.
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        files = [path / name for name in _FILES if (path / name).is_file()]
        if not files:
            raise InputError(
                f"{place} = '{path}' holds no tokenizer that can be read: {', '.join(_FILES)} "
                '(with merges.txt).'
            )
        path = files[0]
    fields = _json(path) if path.suffix == '.json' else {}
    if 'kind' in fields and path.name != 'vocab.json':
        return _checked(path, from_fields, fields)
    found = _folder(folder)
    kinds = _FILES.get(path.name)
    if kinds and found.kind and found.kind not in kinds:
        raise InputError(
            f"{place} = '{folder}' is of '{found.kind}', of which {path.name} does not say all. A "
            'tokenizer.json does: save_pretrained of transformers writes one.'
        )
    if path.suffix == '.model':
        return _checked(path, _of_sentencepiece, path, found, known)
    if path.name == 'vocab.txt':
        fields = _checked(path, _wordpiece, path, found)
    elif path.name == 'vocab.json':
        fields = _checked(path, _byte_level, fields, path, found)
    return _checked(path, _of_library, fields, found, known)


def begins(path: Path, made: Tokenizer) -> bool:
    """Returns whether the tokenizer of a folder puts a BOS before a text that a decoder goes on with."""
    folder = _folder(path)
    said = folder.options.get('add_bos_token')
    if isinstance(said, bool):
        return said
    if isinstance(made, HuggingFace) and (path / 'tokenizer.json').is_file():
        return bool(made.before)
    return folder.kind in _BEGINS


def _checked(path: Path, make: Any, *arguments: Any) -> Any:
    """Returns `make(*arguments)`; what is wrong with the file is one line."""
    try:
        return make(*arguments)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.") from None
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f'it lacks {error}' if isinstance(error, KeyError) else str(error)
        raise InputError(f"'{path}' is not a tokenizer: {reason}.") from None


def _json(path: Path) -> dict[str, Any]:
    """Returns the fields of a file; raises InputError where there are none."""

    def read() -> dict[str, Any]:
        fields = json.loads(path.read_bytes())
        if not isinstance(fields, dict):
            raise ValueError('it holds no {...}')
        return fields

    return _checked(path, read)


def _folder(path: Path) -> _Folder:
    def read(name: str) -> dict[str, Any]:
        return _json(path / name) if (path / name).is_file() else {}

    options, added = read('tokenizer_config.json'), read('added_tokens.json')
    told = {**read('special_tokens_map.json'), **options}
    names = {key: name for key in told if key.endswith('_token') and (name := _content(told[key]))}

    def tokens() -> dict[int, dict[str, Any]]:
        more = told.get('additional_special_tokens') or told.get('extra_special_tokens') or []
        special = {*names.values(), *map(_content, more)}
        found = {int(i): {'content': c, 'special': c in special} for c, i in added.items()}
        for number, token in (options.get('added_tokens_decoder') or {}).items():
            found[int(number)] = {key: token[key] for key in _ADDED if key in token}
        for index in found:
            if not 0 <= index < _MOST_IDS:
                raise ValueError(f'an added token has the id {index}')
        return found

    found = _checked(path / 'tokenizer_config.json', tokens)
    return _Folder(path, names, options, read('config.json'), found)


def _content(token: Any) -> str:
    """Returns the text of a special token, written as such or as {'content': ...}; else ''."""
    text = token.get('content') if isinstance(token, dict) else token
    return text if isinstance(text, str) else ''


def _specials(
    folder: _Folder, ids: Mapping[str, int], own: Specials, size: int, known: Mapping[str, Any]
) -> Specials:
    """Returns the special ids.

    What the caller knows comes first, then the names that files say, then the ids of config.json, and then
    what the tokenizer says of itself.

    Args:
        folder: the small files.
        ids: of all tokens.
        own: by the tokenizer itself, -1 for none.
        size: the first free id.
        known: fields of `Specials`.
    """

    def of(role: str, *keys: str) -> int:
        for key in keys:
            if (name := folder.names.get(f'{key}_token')) in ids:
                return ids[name]
        said = _config_id(folder, f'{keys[0]}_token_id', size)
        return said if said >= 0 else getattr(own, role)

    eos = of('eos', 'eos', 'sep')
    begins = (_config_id(folder, 'decoder_start_token_id', size), of('bos', 'bos', 'cls'), eos)
    found = Specials(
        pad=of('pad', 'pad'),
        # Else what ends a text begins the next.
        bos=next((index for index in begins if index >= 0), -1),
        eos=eos,
        unk=own.unk if own.unk >= 0 else of('unk', 'unk'),
        mask=of('mask', 'mask'),
        sentinels=own.sentinels,
    )
    return dataclasses.replace(found, **known).completed(size)


def _config_id(folder: _Folder, key: str, size: int) -> int:
    """Returns an id that config.json says, -1 for none; of several the first."""
    value = folder.model.get(key)
    value = value[0] if isinstance(value, list) and value else value
    if value is None or value == -1:
        return -1
    if type(value) is not int or not 0 <= value < size:
        raise ValueError(f'{key} = {value!r} of config.json is not one of its {size} ids')
    return value


def _of_library(fields: dict[str, Any], folder: _Folder, known: Mapping[str, Any]) -> Tokenizer:
    made = HuggingFace(fields)
    return made.with_specials(_specials(folder, made.ids, made.own, made.free, known))


def _of_sentencepiece(path: Path, folder: _Folder, known: Mapping[str, Any]) -> Tokenizer:
    """A sentencepiece model, with the tokens that files beside it add after its own."""
    data = path.read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    count = processor.vocab_size()
    ids = {processor.id_to_piece(i): i for i in range(count)}
    for index, token in folder.added.items():
        if index >= count and not token['special']:
            raise ValueError(f"only a tokenizer.json can add the text '{token['content']}' to it")
        ids[token['content']] = index
    own = _own({}, ids, processor.unk_id())
    told = {'pad': processor.pad_id(), 'bos': processor.bos_id(), 'eos': processor.eos_id()}
    size = 1 + max(ids.values())
    if not own.sentinels and (extra := _extra_ids(folder)):
        size = max(size, count + extra)
        told['sentinels'] = tuple(count + extra - 1 - n for n in range(extra))
    own = dataclasses.replace(own, **told)
    return SentencePiece(data, _specials(folder, ids, own, size, known))


def _extra_ids(folder: _Folder) -> int:
    """Returns how many sentinels stand after a sentencepiece model's pieces, the first one last."""
    number = folder.options.get(
        'extra_ids', _T5_SENTINELS if folder.kind in ('t5', 'longt5') else 0
    )
    if type(number) is not int or not 0 <= number < _MOST_IDS:
        raise ValueError(
            f'extra_ids = {number!r} of tokenizer_config.json is no number of sentinels'
        )
    return number


def _wordpiece(path: Path, folder: _Folder) -> dict[str, Any]:
    """Returns the fields of BERT's vocabulary, one token a line."""
    lines = path.read_text(encoding='utf-8').removesuffix('\n').split('\n')
    vocab = {token.removesuffix('\r'): i for i, token in enumerate(lines)}
    unk, options = folder.names.get('unk_token', '[UNK]'), folder.options
    if unk not in vocab or not any(token.startswith('##') for token in vocab):
        raise ValueError(f"it is no WordPiece vocabulary with '{unk}' and pieces such as '##ing'")
    made = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk))
    made.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get('tokenize_chinese_chars', True),
        strip_accents=options.get('strip_accents'),
        lowercase=options.get('do_lower_case', True),
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return _with_added(made, folder, vocab)


def _byte_level(vocab: dict[str, int], path: Path, folder: _Folder) -> dict[str, Any]:
    """Returns the fields of GPT-2's vocabulary and merges."""
    if any(token.endswith('</w>') for token in vocab):
        raise ValueError("pieces such as 'a</w>' are not those of byte-level BPE")
    lines = path.with_name('merges.txt').read_text(encoding='utf-8').split('\n')
    lines = [line.removesuffix('\r') for line in lines if not line.startswith('#version')]
    merges = [tuple(line.split(' ')) for line in lines if line]
    made = tokenizers.Tokenizer(_by_library(models.BPE, vocab, merges))
    spaced = bool(folder.options.get('add_prefix_space', False))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    made.decoder = decoders.ByteLevel()
    if folder.kind in _LIKE_ROBERTA:
        around = [(name, vocab[name]) for name in ('<s>', '</s>')]
        pair = '<s> $A </s> </s> $B:1 </s>:1'
        made.post_processor = processors.TemplateProcessing('<s> $A </s>', pair, around)
    return _with_added(made, folder, vocab)


def _with_added(
    made: tokenizers.Tokenizer, folder: _Folder, vocab: Mapping[str, int]
) -> dict[str, Any]:
    """Returns the fields of a tokenizer with the special and added tokens of its folder.

    Raises:
        ValueError: an added token would have another id.
    """
    usual = {name for names in _USUAL.values() for name in names}
    special = [name for name in {*usual, *folder.names.values()} if name in vocab]
    made.add_special_tokens(sorted(special, key=vocab.__getitem__))
    for index, token in sorted(folder.added.items()):
        made.add_tokens([tokenizers.AddedToken(**token)])
        if made.token_to_id(token['content']) != index:
            raise ValueError(f"the added token '{token['content']}' cannot be {index}")
    return json.loads(made.to_str())
