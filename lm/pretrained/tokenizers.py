"""Our tokenizers as a `tokenizer.json` that Hugging Face's `tokenizers` reads.

It puts the special tokens around a text that the model was trained with. The ids are the same, of any text
but one with U+2581, which sentencepiece writes spaces as: ours keep it, and theirs take it for a space.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Theirs

from lm import run as runs
from lm import vocabulary
from lm.config import Config, TokenizerConfig
from lm.errors import InputError, lookup
from lm.pretrained_tokenizer import HuggingFace
from lm.tokenizer import Chars, SentencePiece, Tokenizer, symbols_of
from lm.writer import atomic_write

_META_SPACE = '\u2581'
# What a sentencepiece model of others may change.
PROBES = ('a', ' a  b ', 'A\nb\t', '\ufb01 \u00bd')
# Those of what is trained here, at 0 to 3, and after them the bytes of a tokenizer of bytes.
SPECIALS = ('<pad>', '<s>', '</s>', '<unk>')
BYTES = (*SPECIALS, *(f'<0x{byte:02X}>' for byte in range(256)))


def save_pretrained(tokenizer: Tokenizer, config: Config, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` into a folder.

    Args:
        tokenizer: trained here.
        config: the run's; masks, sentinels and codes have ids after the tokenizer's.
        folder: which exists.

    Raises:
        InputError: the tokenizer is of a kind that cannot be written so.
    """
    make = lookup(_WRITERS, tokenizer.kind, "the tokenizer's kind, for an export")
    made = make(tokenizer, config.tokenizer)
    if isinstance(tokenizer, SentencePiece) and config.tokenizer.path:
        for text in PROBES:
            if made.encode(text, add_special_tokens=False).ids != tokenizer.encode(text).tolist():
                raise InputError(
                    f"the tokenizer of '{config.tokenizer.path}' changes texts in a way that is not "
                    'written to a tokenizer.json: it cannot be exported.'
                )
    ids = vocabulary.build(tokenizer, config.tokenizer)
    for i, name in sorted(added_names(ids).items()):
        if i < tokenizer.vocab_size:  # one of its own
            continue
        made.add_special_tokens([_special(name)])
        if made.token_to_id(name) != i:
            raise InputError(f"the token '{name}' is in the tokenizer already: no export has both.")
    made.post_processor = _around(made, tokenizer, config)
    made.save(str(folder / 'tokenizer.json'))
    own = tokenizer.specials
    roles = {'pad': own.pad, 'bos': own.bos, 'eos': own.eos, 'unk': own.unk, 'mask': ids.mask}
    names = {f'{role}_token': made.id_to_token(i) for role, i in roles.items() if i >= 0}
    fields = {name: token for name, token in names.items() if token is not None}
    fields |= {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'clean_up_tokenization_spaces': False,
        'model_max_length': config.data.length,
    }
    if ids.sentinels:
        fields['additional_special_tokens'] = [made.id_to_token(i) for i in ids.sentinels]
    text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False)
    atomic_write(folder / 'tokenizer_config.json', text + '\n')


def added_names(ids: vocabulary.Vocabulary) -> dict[int, str]:
    """Returns what sentinels, codes and the mask are called, by id."""
    names = {i: f'<extra_id_{n}>' for n, i in enumerate(ids.sentinels)}
    names |= {i: name for name, i in ids.codes.items()}
    return names | ({ids.mask: '<mask>'} if ids.mask >= 0 else {})


def _around(made: Theirs, tokenizer: Tokenizer, config: Config) -> processors.PostProcessor:
    """Returns what puts the special tokens before and after a text, and between two."""
    own = tokenizer.specials
    bos = config.generate.bos
    if isinstance(tokenizer, HuggingFace) and bool(tokenizer.before) == bos:
        return made.post_processor
    if config.model.architecture == 'encoder_decoder':
        before, after, _ = runs.prompt_of(config, tokenizer)
    elif config.model.architecture == 'decoder':
        before, after = [own.bos] * bos, []
    else:
        before, after = [own.bos], [own.eos]

    def names(ids: Iterable[int], segment: int) -> list[str]:
        return [f'{made.id_to_token(i)}:{segment}' for i in ids]

    single = [*names(before, 0), '$A:0', *names(after, 0)]
    return processors.TemplateProcessing(
        single=single,
        pair=[*single, '$B:1', *names(after, 1)],
        special_tokens=[(made.id_to_token(i), i) for i in {*before, *after}],
    )


def _special(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)


def _huggingface(tokenizer: Tokenizer, config: TokenizerConfig) -> Theirs:
    return Theirs.from_str(json.dumps(json.loads(tokenizer.serialized())['tokenizer']))


def _sentencepiece(tokenizer: SentencePiece, config: TokenizerConfig) -> Theirs:
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    count = processor.vocab_size()
    pieces = [processor.id_to_piece(i) for i in range(count)]
    scores = [processor.get_score(i) for i in range(count)]
    special = (processor.is_control, processor.is_unknown, processor.is_byte)
    text = [i for i in range(count) if not any(kind(i) for kind in special)]
    falls_back = any(map(processor.is_byte, range(count)))
    if tokenizer.kind == 'unigram':
        made = models.Unigram(
            list(zip(pieces, scores, strict=True)),
            unk_id=processor.unk_id(),
            byte_fallback=falls_back,
        )
    else:
        ids = {piece: i for i, piece in enumerate(pieces)}
        made = models.BPE(
            vocab=ids,
            merges=_merges([pieces[i] for i in text], [scores[i] for i in text]),
            unk_token=pieces[processor.unk_id()],
            fuse_unk=True,
            byte_fallback=falls_back,
        )
    theirs = _lossless(made)
    controls = [i for i in range(count) if processor.is_control(i) or processor.is_unknown(i)]
    theirs.add_special_tokens([_special(pieces[i]) for i in controls])
    # What sentencepiece cuts out before all else.
    symbols = [symbol for symbol in symbols_of(config) if processor.piece_to_id(symbol) in text]
    theirs.add_tokens([AddedToken(symbol, normalized=False) for symbol in symbols])
    return theirs


def _merges(pieces: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """Returns the pairs that make each piece, those of the best piece first."""
    order = {piece: i for i, piece in enumerate(pieces)}
    found = []
    for piece, score in zip(pieces, scores, strict=True):
        parts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs = [(a, b) for a, b in parts if a in order and b in order]
        found += [(-score, order[a], order[b], a, b) for a, b in pairs]
    return [(a, b) for *_, a, b in sorted(found)]


def _lossless(model: models.Model) -> Theirs:
    """Returns a tokenizer that changes nothing of a text but the way it writes spaces."""
    made = Theirs(model)
    made.normalizer = normalizers.Replace(' ', _META_SPACE)
    made.decoder = decoders.Sequence(
        [decoders.Replace(_META_SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()]
    )
    return made


def _bytes(tokenizer: Tokenizer, config: TokenizerConfig) -> Theirs:
    ids = {piece: i for i, piece in enumerate(BYTES)}
    made = Theirs(models.BPE(vocab=ids, merges=[], unk_token='<unk>', byte_fallback=True))
    made.add_special_tokens([_special(name) for name in SPECIALS])
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return made


def _chars(tokenizer: Chars, config: TokenizerConfig) -> Theirs:
    pieces = [*SPECIALS, *tokenizer.characters]
    ids = {piece: i for i, piece in enumerate(pieces)}
    made = Theirs(models.BPE(vocab=ids, merges=[], unk_token='<unk>', fuse_unk=False))
    made.add_special_tokens([_special(name) for name in SPECIALS])
    made.decoder = decoders.Fuse()
    return made


_WRITERS: dict[str, Callable[[Any, TokenizerConfig], Theirs]] = {
    'unigram': _sentencepiece,
    'bpe': _sentencepiece,
    'bytes': _bytes,
    'chars': _chars,
    'huggingface': _huggingface,
}
