"""From raw text to a corpus worth training on, with a report of what was thrown away and why.

Clean, deduplicate and split; then read corpora/pydocs/report.html:
  python -m lm.corpus --config=configs/corpus/pydocs.py
Your own text; all keys are explained in configs/corpus/base.py:
  python -m lm.corpus --config=configs/corpus/base.py --output=corpora/mine \\
    --config.sources="('web=jsonl:crawl/*.jsonl.zst#text{url}', 'books=text:books/*.txt')"
The same start again goes on where the last one was stopped. Train on the result:
  python -m lm.main --config=configs/quickstart.py --config.data.train='corpus:corpora/mine[train]' \\
    --config.data.valid='corpus:corpora/mine[valid]' --config.data.test='corpus:corpora/mine[test]'
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from lm import command
from lm.data import corpus, corpus_shards
from lm.data.corpus import get_config
from lm.errors import InputError
from lm.writer import atomic_write

__all__ = ['build', 'get_config']


def build(
    config: ConfigDict, folder: str | Path, say: Callable[[str], None] = print
) -> dict[str, Any] | None:
    """Makes a corpus with its report, or goes on with it where it was stopped.

    Args:
        config: what to make, of `get_config`.
        folder: where.
        say: told what was found.

    Returns:
        What report.json holds; None where its jobs have been queued.

    Raises:
        InputError: see `lm.data.corpus.build`.
    """

    def report(work: Any) -> Any:
        from lm.corpus_report import Report

        return Report(work)

    work = corpus.build(config, folder, say, last=report, files=('report.json', 'report.html'))
    if work is None:
        return None
    from lm import corpus_report

    found = json.loads((Path(folder) / 'report.json').read_text())
    corpus_report.say(found, say)
    if work.options.vocabulary.kind:
        _make_vocabulary(work, say)
    return found


def _make_vocabulary(work: Any, say: Callable[[str], None]) -> None:
    """Trains the tokenizer that a corpus asks for, with its report."""
    from lm import vocabulary_report
    from lm.config import load, parse, put

    chosen, output = work.options.vocabulary, work.folder / 'vocabulary'
    config = load('base')
    values = {'kind': chosen.kind, 'vocab_size': chosen.size, 'train_bytes': chosen.train_bytes}
    put(config, {f'tokenizer.{key}': value for key, value in values.items()})
    config.tokenizer.symbols = chosen.symbols
    made = {
        'options': dataclasses.asdict(chosen),
        'corpus': json.loads((work.folder / corpus_shards.MANIFEST).read_text())['splits']['train'],
    }
    told = output / 'made.json'
    if told.exists() and json.loads(told.read_text()) == json.loads(json.dumps(made)):
        say(f'Vocabulary: {output / "report.html"}')
        return
    options = vocabulary_report.Options(
        (f'corpus:{work.folder}[train]',), sizes=(), identify=bool(work.options.clean.languages)
    )
    try:
        vocabulary_report.report(parse(config), output, options, say=say)
    except InputError as error:  # It names the key of a run's config.
        told = str(error).replace('config.tokenizer.vocab_size', 'config.vocabulary.size')
        raise InputError(
            f'{told} The corpus itself is made; with that size the same command makes the rest.'
        ) from None
    atomic_write(told, json.dumps(made))
    say(f'Vocabulary: {output / "report.html"}')


def define_flags() -> None:
    """Defines the options of the command: only there, since those of `lm.main` have the same names."""
    config_flags.DEFINE_config_file(
        'config',
        None,
        'Config file, such as configs/corpus/pydocs.py. --config.KEY=VALUE changes a key.',
    )
    flags.DEFINE_string(
        'output', '', 'Folder of the corpus. Default: corpora/ and the name of the config file.'
    )


def main(arguments: list[str]) -> None:
    """Makes the corpus that the flags name; bad input is one line and exit code 2."""
    given = flags.FLAGS
    with command.errors_as_lines():
        command.no_more(arguments)
        if given.config is None:
            raise InputError('--config=FILE is missing, such as --config=configs/corpus/pydocs.py.')
        name = Path(config_flags.get_config_filename(given['config'])).stem
        folder = given.output or str(Path('corpora') / name)
        if build(given.config, folder):
            print(f'Report: {Path(folder) / "report.html"}')


if __name__ == '__main__':
    define_flags()
    app.run(
        main,
        flags_parser=lambda arguments: command.parse_flags(
            arguments, sys.modules[__name__], 'configs/corpus/pydocs.py'
        ),
    )
