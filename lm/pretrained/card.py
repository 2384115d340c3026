"""The model card of an export: what it is, how it is used, and the numbers that its run measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lm
from lm import config as configs
from lm import evaluate, page, report

# By the end of a class's name there, the first that fits: what it is for, as Hugging Face's hub calls it.
_PIPELINES = {
    'ForCausalLM': 'text-generation',
    'XLNetLMHeadModel': 'feature-extraction',
    'LMHeadModel': 'text-generation',
    'ForConditionalGeneration': 'translation',
    'MTModel': 'translation',
    'ForMaskedLM': 'fill-mask',
    'ElectraForPreTraining': 'feature-extraction',
    'ForPreTraining': 'fill-mask',
}
_CALLS = {
    'text-generation': 'AutoModelForCausalLM',
    'translation': 'AutoModelForSeq2SeqLM',
    'fill-mask': 'AutoModelForMaskedLM',
    'feature-extraction': 'AutoModelForPreTraining',
}


def card(
    name: str,
    theirs: Mapping[str, Any],
    parameters: int,
    step: int | None,
    checkpoint: str,
    workdir: Path | None,
) -> str:
    """Returns a README.md, with the metadata that Hugging Face's hub reads.

    Args:
        name: of the model.
        theirs: its config.json.
        parameters: how many.
        step: the training step that they are of, or None.
        checkpoint: its name, such as `latest`; '' is what the run's config evaluates.
        workdir: of the run; None where there is none. Of its report and its evaluations there stands
            what was measured, and of which checkpoint.
    """
    kind = theirs['architectures'][0]
    pipeline = next(made for end, made in _PIPELINES.items() if kind.endswith(end))
    found = _read(workdir / 'report.json') if workdir else None
    parts = [_META.format(pipeline=pipeline, family=theirs['model_type'])]
    parts += [f'# {page.markdown_text(name)}\n']
    of = f', of the checkpoint of step {step}' if step else ''
    parts += [f'A `{kind}` of {parameters:,} parameters, written by lm {lm.__version__}{of}.\n']
    parts += [_USE.format(call=_CALLS[pipeline], name=name)]
    sections = report.sections(found, configs.defaults()) if found else {}
    of_run = found and step == found['steps'] and checkpoint in ('', _evaluated(found))
    for title in ('Perplexity', 'Tasks') if of_run else ():
        if title in sections:
            parts += [f'## {title}\n\n{sections[title]}']
    if workdir and (rows := _benchmarks(workdir, step, checkpoint or _evaluated(found))):
        head = [
            'task',
            'version',
            'examples given',
            'questions',
            'metric',
            'value',
            'standard error',
        ]
        parts += [f'## lm-evaluation-harness\n\n{page.markdown_table(head, rows)}']
    if found:
        parts += [f'## Training\n\n{page.markdown_text(report.status(found))}\n']
        parts += [sections[title] for title in ('Training data', 'Config') if title in sections]
    if of_run and 'Samples' in sections:
        parts += [f'## Samples\n\n{sections["Samples"]}']
    return '\n'.join(parts)


_META = """---
library_name: transformers
pipeline_tag: {pipeline}
tags:
- lm
- {family}
---
"""
_USE = """```python
from transformers import AutoTokenizer, {call}

tokenizer = AutoTokenizer.from_pretrained('{name}')
model = {call}.from_pretrained('{name}')
```
"""


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None


def _evaluated(found: Mapping[str, Any] | None) -> str:
    """Returns the name of the checkpoint that a report's numbers are of."""
    return found['config']['eval']['checkpoint'] if found else 'latest'


def _benchmarks(workdir: Path, step: int | None, checkpoint: str) -> list[list[str]]:
    """Returns rows of what the harness found of a checkpoint: of each task the last."""
    path = workdir / evaluate.FILE
    lines = path.read_text(encoding='utf-8').splitlines() if path.is_file() else []
    latest: dict[Any, list[list[str]]] = {}
    for line in map(json.loads, lines):
        if 'harness' not in line or (line['step'], line['checkpoint']) != (step, checkpoint):
            continue
        for task, values in line['benchmarks'].items():
            about = [values[key] for key in ('version', 'shots', 'questions')]
            about = ['–' if value is None else str(value) for value in about]
            rows = []
            for metric, value in values.items():
                if metric in ('version', 'shots', 'questions') or metric.endswith('_stderr'):
                    continue
                error = values.get(f'{metric}_stderr')
                error = '–' if error is None else f'{error:.4f}'
                rows.append([task, *about, metric, f'{value:.4f}', error])
            latest[task, values['shots'], line['limit']] = rows
    return [row for rows in latest.values() for row in rows]
