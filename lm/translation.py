"""What a model makes of the sources of a split, and how close it comes to the targets."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import metrics, predictions
from lm import run as runs
from lm.config import EvalConfig
from lm.data import source
from lm.inference import LanguageModel
from lm.perplexity import bar
from lm.run import Run

GREEDY = {'temperature': 0.0}
_SHOWN = 20  # Pairs in a report.


def search(options: EvalConfig) -> dict[str, Any]:
    """Returns how `LanguageModel.generate` searches as `config.eval` says; without beams, greedily."""
    if options.beams > 1:
        return {'beams': options.beams, 'length_penalty': options.length_penalty}
    return GREEDY


def translate(
    model: LanguageModel,
    texts: list[str],
    how: Mapping[str, Any],
    label: str,
    seed: Sequence[int] = (0,),
) -> list[str]:
    """Returns what the model makes of each text.

    Args:
        model: an encoder-decoder.
        texts: sources.
        how: arguments of `LanguageModel.generate`, such as `{'beams': 4}` or `{'temperature': 1.0}`.
        label: of the progress bar.
        seed: numbers that decide what is drawn, where something is.
    """
    config = model.run.config
    rows = max(1, runs.evaluation_rows(config) * (1 if 'beams' in how else 4) // 2)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # Rows of a batch are alike.
    batches = [order[start : start + rows] for start in range(0, len(order), rows)]
    found: dict[int, str] = {}
    for number, batch in enumerate(bar(batches, len(batches), label)):
        filled = batch + batch[:1] * (rows - len(batch))  # One shape, one compilation.
        made = model.generate(
            [texts[i] for i in filled],
            max_tokens=config.data.length,
            seed=int(np.random.SeedSequence([*seed, number]).generate_state(1)[0]),
            **how,
        )
        found |= dict(zip(batch, made, strict=False))
    return [found[i] for i in range(len(texts))]


def evaluate(
    run: Run, params: Any, names: Iterable[str], folder: Path
) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]]]:
    """Translates splits of pairs greedily and by beam search, and measures against the targets.

    What was made is kept in the folder by `lm.predictions.write`.

    Args:
        run: its objective is `seq2seq`.
        params: the parameters to evaluate.
        names: of splits.
        folder: is made where it is not there.

    Returns:
        `{'SPLIT, HOW': measured(...)}`, and some pairs as samples of a report.
    """
    config, model = run.config, LanguageModel(run, params)
    results, samples = {}, []
    for name in names:
        texts = list(source.parse(getattr(config.data, name), config.data).documents())
        sources, targets = texts[::2], texts[1::2]
        ways = {'greedy': GREEDY}
        if config.eval.beams > 1:
            ways[f'beam {config.eval.beams}'] = search(config.eval)
        for way, how in ways.items():
            made = translate(model, sources, how, f'{name}, {way}')
            results[f'{name}, {way}'] = measured(targets, made, run)
            lines = [
                {'source': s, 'target': t, 'prediction': p}
                for s, t, p in zip(sources, targets, made, strict=True)
            ]
            if jax.process_index() == 0:
                predictions.write(folder, f'{name}, {way}', lines)
            step = max(1, len(lines) // _SHOWN)
            samples = [_sample(**line) for line in lines[::step][:_SHOWN]]
    return results, samples


def _sample(source: str, target: str, prediction: str) -> dict[str, str]:
    """Returns a sample of a report; what should have come out is shown where something else did."""
    reference = '' if prediction == target else f'\n(reference: {target})'
    return {'prompt': source, 'text': f'\n{prediction}{reference}'}


def measured(targets: list[str], predictions: list[str], run: Run) -> dict[str, Any]:
    """Returns BLEU and chrF with their signatures, and the part of texts that are the target's own."""
    options = run.config.eval
    bleu = metrics.bleu(targets, predictions, options.bleu_tokenizer, options.lowercase)
    chrf = metrics.chrf(targets, predictions, options.lowercase)
    exact = sum(t == p for t, p in zip(targets, predictions, strict=True)) / len(targets)
    return {
        'bleu': bleu['bleu'],
        'chrf': chrf['chrf'],
        'exact': exact,
        'signature': f'BLEU {bleu["signature"]}; chrF {chrf["signature"]}',
    }
