"""The input with the model off: from a text file to tokens in the cache, and from tokens to batches.

The text is what any machine has, the documentation in Python's standard library, some of it over and over:
neither sentencepiece nor the peers remember more than single words, so it costs them what new text would.
It lies in one file in the folder for temporary files, which stays there for the next run.
"""

import dataclasses
import functools
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from configs import base
from experiments.speed.race import Case, Contestant
from lm import config, sentencepiece_tokenizer, tokenizer
from lm.data import features, pipeline, pydocs, source
from lm.objectives.causal import causal

Built = tuple[dict[str, Any], Callable[[], float]]

MEGABYTES = 16
VOCAB_SIZE = 8192
THREADS = 2
# Characters, and the rest of the line. So much the peers get at once: cut as for sentencepiece, since a
# single long text would leave all but one of their threads idle.
PART = sentencepiece_tokenizer._PART
# GPT-2's: how a text is cut into words before byte pairs are merged.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@functools.cache
def documents() -> str:
    return '\n'.join(pydocs.documents(''))


def text_file() -> Path:
    """Returns the file of the text, which it writes if it is not there."""
    text = documents().encode()
    text *= MEGABYTES * 1_000_000 // len(text) + 1
    path = Path(tempfile.gettempdir()) / 'lm_speed_inputs.txt'
    if not path.exists() or path.read_bytes() != text:
        path.write_bytes(text)
    return path


def data_config(**changes: Any) -> config.DataConfig:
    return dataclasses.replace(config.parse(base.get_config()).data, **changes)


def trained(kind: str) -> tokenizer.Tokenizer:
    """Returns lm's tokenizer of a kind, trained on the text."""
    spec = config.parse(base.get_config()).tokenizer
    spec = dataclasses.replace(spec, kind=kind, vocab_size=VOCAB_SIZE)
    return tokenizer.build(spec, lambda: iter([documents()]))


def rate(path: Path, work: Callable[[], Any]) -> float:
    """Returns the MB/s at which `work` went through the file."""
    start = time.perf_counter()
    work()
    return path.stat().st_size / 1e6 / (time.perf_counter() - start)


# --- from text to tokens -------------------------------------------------------------------------


def lm_tokens(kind: str) -> Built:
    """`lm.data.features.tokenize` into an empty cache: hash, read, encode, count words, write."""
    path, made = text_file(), trained(kind)
    cache = Path(tempfile.gettempdir()) / f'lm_speed_{os.getpid()}'
    data = data_config(document='file', cache_dir=str(cache), workers=THREADS)
    text = source.parse(f'text:{path}', data)

    def work() -> int:
        split = features.tokenize(text, made, data, 'speed')
        shutil.rmtree(cache)
        return split.num_targets - 1  # Without EOS.

    facts = {
        'tokens': [work()],
        'vocab_size': made.vocab_size,
        'threads': THREADS,
        'version': f'sentencepiece {version("sentencepiece")}',
    }
    return facts, lambda: rate(path, work)


def sentencepiece_alone(kind: str) -> Built:
    """The processor that lm calls, in its own threads, on text in memory: what lm cannot go beyond."""
    path, processor = text_file(), trained(kind)._processor
    parts = PART.findall(path.read_text(encoding='utf-8'))

    def work() -> int:
        ids = processor.encode(parts, out_type='numpy', num_threads=THREADS)
        return sum(map(len, ids))

    facts = {
        'tokens': [work()],
        'vocab_size': processor.vocab_size(),
        'threads': THREADS,
        'version': f'sentencepiece {version("sentencepiece")}',
    }
    return facts, lambda: rate(path, work)


def huggingface_unigram() -> Built:
    """The pieces and scores of our own model, in Hugging Face's encoder."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    ours = trained('unigram')._processor
    vocabulary = [(ours.id_to_piece(i), ours.get_score(i)) for i in range(ours.vocab_size())]
    theirs = tokenizers.Tokenizer(models.Unigram(vocabulary, tokenizer.UNK, byte_fallback=True))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Sentencepiece takes line feeds and tabs out first.
            pre_tokenizers.Split(tokenizers.Regex(r'[\n\t]'), 'isolated'),
            # Split at spaces it is no faster, and has no pieces for several spaces.
            pre_tokenizers.Metaspace(prepend_scheme='never', split=False),
        ]
    )
    return _huggingface(theirs)


def huggingface_bpe() -> Built:
    return _huggingface(_byte_pairs())


def tiktoken_bpe() -> Built:
    """The same merges as Hugging Face's, in tiktoken's encoder."""
    import tiktoken

    letters = _byte_letters()
    ranks = {
        bytes(map(letters.__getitem__, token)): rank
        for token, rank in _byte_pairs().get_vocab().items()
    }
    encoding = tiktoken.Encoding('speed', pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
    encode = functools.partial(encoding.encode_to_numpy, disallowed_special=())

    def ids(parts: list[str]) -> np.ndarray:
        with ThreadPoolExecutor(THREADS) as pool:
            return np.concatenate([*pool.map(encode, parts)])

    return _peer(ids, encoding.n_vocab, f'tiktoken {version("tiktoken")}')


def _huggingface(made: Any) -> Built:
    def ids(parts: list[str]) -> np.ndarray:
        encoded = made.encode_batch_fast(parts, add_special_tokens=False)
        return np.fromiter(itertools.chain.from_iterable(e.ids for e in encoded), np.uint16)

    return _peer(ids, made.get_vocab_size(), f'tokenizers {version("tokenizers")}')


def _peer(encode: Callable[[list[str]], np.ndarray], vocab_size: int, of: str) -> Built:
    """Reads the file, cuts it, encodes it, and writes the ids as uint16."""
    path = text_file()

    def work() -> int:
        parts = PART.findall(path.read_text(encoding='utf-8'))
        ids = encode(parts)
        with tempfile.TemporaryFile() as file:
            file.write(ids.astype(np.uint16, copy=False))
        return len(ids)

    facts = {'tokens': [work()], 'vocab_size': vocab_size, 'threads': THREADS, 'version': of}
    return facts, lambda: rate(path, work)


def _byte_pairs() -> Any:
    """Returns Hugging Face's byte-level BPE, trained by it."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([documents()], trainer)
    return made


def _byte_letters() -> dict[str, int]:
    """Returns the byte that each letter of GPT-2's byte-level alphabet stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


# --- from tokens to batches ----------------------------------------------------------------------

LENGTH, BATCH, BATCHES = 256, 8, 500


def _tokens(documents: str) -> features.TokenizedSplit:
    """Returns random tokens: one document, or many of 80 tokens on average."""
    rng = np.random.default_rng(0)
    total = 4_000_000
    lengths = {
        'one long document': lambda: np.array([total]),
        'many short documents': lambda: 2 + rng.geometric(1 / 80, size=total // 80),
    }[documents]()
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    tokens = rng.integers(4, VOCAB_SIZE, size=offsets[-1]).astype(np.uint16)
    targets = int(offsets[-1]) - len(lengths)
    return features.TokenizedSplit('', '', tokens, offsets, len(lengths), targets, 0, 0, 0)


def lm_batches(documents: str) -> Built:
    """`lm.data.pipeline`: shuffled by epochs, packed, with positions and segments, in threads."""
    split, data = _tokens(documents), data_config(length=LENGTH, batch_size=BATCH)
    objective = pipeline.Objective(
        lambda tokens, rng, draw: causal(tokens, rng),
        window=data.length + 1,
        least=2,
        sizes=lambda n: (n - 1, 0),
        length=data.length,
        overlap=1,
    )
    dataset = pipeline.train_dataset(split, data, objective, seed=0)
    batches = pipeline.batches(dataset)

    def sample() -> float:
        start = time.perf_counter()
        for _ in itertools.islice(batches, BATCHES):
            pass
        return BATCHES * BATCH * LENGTH / (time.perf_counter() - start)

    return {'documents': len(split.lengths), 'version': f'grain {version("grain")}'}, sample


def nanogpt_batches(documents: str) -> Built:
    """As nanoGPT's `get_batch`: windows at random places, inputs and targets only."""
    import torch

    tokens = _tokens(documents).tokens

    def batch() -> tuple[Any, Any]:
        starts = torch.randint(len(tokens) - LENGTH, (BATCH,))
        return tuple(
            torch.stack(
                [torch.from_numpy(tokens[i : i + LENGTH].astype(np.int64)) for i in starts + shift]
            )
            for shift in (0, 1)
        )

    def sample() -> float:
        start = time.perf_counter()
        for _ in range(BATCHES):
            batch()
        return BATCHES * BATCH * LENGTH / (time.perf_counter() - start)

    return {'version': f'torch {torch.__version__}'}, sample


# --- cases ---------------------------------------------------------------------------------------


def _contestant(name: str, build: str, **options: Any) -> Contestant:
    threads = {'RAYON_NUM_THREADS': str(THREADS), 'TOKENIZERS_PARALLELISM': 'true'}
    return Contestant(name, f'experiments.speed.inputs:{build}', options, threads)


_PEERS = {
    'unigram': [
        _contestant('sentencepiece alone', 'sentencepiece_alone', kind='unigram'),
        _contestant('Hugging Face tokenizers', 'huggingface_unigram'),
    ],
    'bpe': [
        _contestant('sentencepiece alone', 'sentencepiece_alone', kind='bpe'),
        _contestant('Hugging Face tokenizers', 'huggingface_bpe'),
        _contestant('tiktoken', 'tiktoken_bpe'),
    ],
    'bytes': [],
    'chars': [],
}
CASES = [
    *(
        Case(
            f'input/text to tokens/{kind}',
            'MB/s',
            True,
            (_contestant('lm', 'lm_tokens', kind=kind), *peers),
            # The same pieces and scores give as many tokens; bytes and pairs of others give others.
            agree='tokens' if kind == 'unigram' else '',
            tolerance=1e-5,
        )
        for kind, peers in _PEERS.items()
    ),
    Case(
        'input/tokens to batches/one long document',
        'tokens/s',
        True,
        (
            _contestant('lm', 'lm_batches', documents='one long document'),
            _contestant('nanoGPT', 'nanogpt_batches', documents='one long document'),
        ),
    ),
    Case(
        'input/tokens to batches/many short documents',
        'tokens/s',
        True,
        (_contestant('lm', 'lm_batches', documents='many short documents'),),
    ),
]
