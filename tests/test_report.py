"""The report of a run and the comparison of several, read back as programs and people read them."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lm import config as configs
from lm import environment, page, plots, predictions, report
from lm.config import LogConfig
from lm.errors import InputError
from lm.tokenizer import FILES
from lm.writer import MetricsWriter

pytestmark = pytest.mark.usefixtures('two_devices')

BASE = configs.to_dict(configs.parse(configs.load('base')))
EVIL = '<script>alert("x")</script> & $a$ | `b` \x00\x1b\ud800 äö日本'


def metrics(workdir, steps=60):
    with MetricsWriter(
        workdir, LogConfig(tensorboard=False, wandb='', profile=(), profile_all_hosts=False), 0
    ) as writer:
        for step in range(1, steps + 1):
            values = {'loss': 8 / step + 2, 'grad_norm': 1.0, 'learning_rate': 1e-3}
            values['loss'] = math.nan if step == 7 else values['loss']
            values |= {'tokens_per_second': 1e4 + step, 'accuracy': 0.5}
            writer.write(step, {f'train/{name}': value for name, value in values.items()})
            if step % 20 == 0:
                writer.write(step, {'valid/loss': 8 / step + 2.2})


def split(loss, tokens=1000):
    words, size = 800, 4000
    return {
        'loss': loss,
        'perplexity': math.exp(loss),
        'bits_per_byte': loss * tokens / math.log(2) / size,
        'word_perplexity': math.exp(loss * tokens / words),
        'accuracy': 0.4,
        'tokens': tokens,
        'words': words,
        'bytes': size,
    }


def make(workdir, **changes):
    """A run's report, as the loop hands it over; config keys are changed by `{'model.bias': True}`."""
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / 'metrics.jsonl').exists():
        metrics(workdir)
    config = configs.load('base')
    config.update_from_flattened_dict(changes.pop('config', {}))
    made = {
        'name': workdir.name,
        'steps': 60,
        'parameters': 1_234_567,
        'active_parameters': 1_234_567,
        'seconds': 75.0,
        'finished': True,
        'splits': {'valid': split(2.5), 'test': split(2.75)},
        'tasks': {},
        'corpora': [
            {'name': '', 'source': 'builtin:pydocs[train]', 'rows': 2_000, 'tokens': 500_000}
            | {'rows_seen': 960, 'share': 1.0, 'epochs': 0.48}
        ],
        'throughput': {'tokens_per_second': 10_030.0, 'step_seconds_median': 0.4, 'mfu': None},
        'goodput': {'seconds': 75.0, 'share': 0.8, 'starts': 1}
        | {'parts': {'training': 60.0, 'compile': 10.0, 'downtime': 5.0}},
        'profile': None,
        'curves': report.curves(workdir),
        'samples': [{'prompt': 'Once ', 'text': 'upon a time'}],
        'environment': {'device': 'cpu', 'devices': 1, 'jax': '0.10.2', 'commit': 'c0ffee' * 6},
        'config': configs.to_dict(configs.parse(config)),
        'history': [{'event': 'start', 'step': 0, 'time': 0.0}],
    }
    return made | changes


class Reader(HTMLParser):
    """Checks that tags close in order, and gathers attributes and text."""

    VOID = {'meta', 'br', 'hr', 'img', 'link'}

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], ''
        self.feed(markup)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def values(self, name):
        return [value for key, value in self.attributes if key == name]


def assert_stands_alone(markup):
    """No script, nothing fetched, ids unique, and references only to ids of the page."""
    reader = Reader(markup)
    assert not {'script', 'link', 'img', 'iframe', 'object'} & set(reader.tags)
    assert not re.search(r'https?://|@import|src=', markup)
    ids = reader.values('id')
    assert len(ids) == len(set(ids))
    targets = [value.removeprefix('#') for value in reader.values('href')]
    targets += re.findall(r'url\(#([^)]*)\)', markup)
    assert set(targets) <= set(ids)
    assert len(re.findall(r'url\(', markup)) == len(re.findall(r'url\(#', markup))
    return reader


@pytest.fixture
def run(tmp_path):
    made = make(tmp_path / 'quick', config={'model.num_layers': 8, 'model.activation': 'swiglu'})
    return report.write(tmp_path / 'quick', made, BASE).parent


def test_html_stands_alone_and_has_every_section(run):
    reader = assert_stands_alone((run / 'report.html').read_text(encoding='utf-8'))
    for section in (
        *('perplexity', 'curves', 'samples', 'throughput', 'config', 'environment', 'history'),
    ):
        assert section in reader.values('id')
    for part in (
        *('quick', 'valid perplexity', '12.18', '1.23M', '1:15', 'Once upon a time', '0.10.2'),
        *('exp(total nats / total tokens)', 'lm-evaluation-harness', 'loss (nats per token)'),
        *('train', 'learning rate', 'tokens per second', 'steps', '1970-01-01 00:00:00 UTC'),
    ):
        assert part in reader.text


def test_figures_take_the_colours_of_the_page(run):
    figures = re.findall(r'<figure>.*?</figure>', (run / 'report.html').read_text(), re.DOTALL)
    assert len(figures) == 5  # loss, learning rate, throughput, gradient norm, accuracy
    assert all('var(--c0)' in figure for figure in figures)
    assert not any(re.search(r'#[0-9a-f]{6}|fonts?:|DejaVu', figure) for figure in figures)


def test_the_config_shows_first_what_differs(run):
    markup = (run / 'report.html').read_text()
    marked = re.findall(r'<tr class=marked><td>([^<]*)</td><td[^>]*>([^<]*)</td>', markup)
    assert marked == [('model.num_layers', '8'), ('model.activation', 'swiglu')]
    # Every key is there, once.
    for key, _ in configs.flatten(BASE):
        assert markup.count(f'<td>{key}</td>') == 1


def test_whatever_the_text_is_it_is_shown_and_not_run(tmp_path):
    made = make(
        tmp_path / 'evil',
        name=EVIL,
        samples=[{'prompt': EVIL, 'text': EVIL}, {'prompt': '', 'text': '```\n````\n</pre>'}],
        environment={'command': EVIL},
        config={'data.train': EVIL.replace('\ud800', '')},
        history=[],
        tasks={EVIL: {EVIL: 0.5, 'signature': EVIL}},
    )
    report.write(tmp_path / 'evil', made, BASE)
    reader = assert_stands_alone((tmp_path / 'evil' / 'report.html').read_text(encoding='utf-8'))
    shown = EVIL.replace('\x00', '\ufffd').replace('\x1b', '\ufffd').replace('\ud800', '\ufffd')
    assert reader.text.count(shown) >= 6
    assert '</pre>' in reader.text
    markdown = (tmp_path / 'evil' / 'report.md').read_text(encoding='utf-8')
    assert '<script' not in re.sub('(?s)\n```+text\n.*?\n```+\n', '', markdown)
    assert '\n`````text\n```\n````\n</pre>\n`````\n' in markdown
    assert json.loads((tmp_path / 'evil' / 'report.json').read_text())['name'] == EVIL


def test_json_round_trips(tmp_path):
    made = make(tmp_path / 'run', config={'data.valid': ''})
    made['splits']['valid'] |= {'word_perplexity': math.inf, 'loss': np.float32(2.5)}
    report.write(tmp_path / 'run', made, BASE)

    def forbid(constant):
        raise AssertionError(constant)

    text = (tmp_path / 'run' / 'report.json').read_text()
    read = json.loads(text, parse_constant=forbid)
    assert tuple(read) == report.KEYS
    assert read['splits']['valid']['loss'] == 2.5
    assert read['splits']['valid']['word_perplexity'] is None
    assert read['splits']['test'] == made['splits']['test']
    assert read['curves']['train/loss'][6] == [7, None]
    assert read['curves']['valid/loss'] == made['curves']['valid/loss']
    assert read['config']['model']['attention'] == ['causal']
    assert json.loads(report.to_json(read)) == read
    assert max(len(line) for line in text.splitlines() if 'train/' not in line) < 400


def test_markdown_has_the_tables(run):
    markdown = (run / 'report.md').read_text()
    rows = [re.split(r' *\| *', line.strip('| ')) for line in markdown.splitlines() if '|' in line]
    assert ['valid', '2.5000', '12.18', '0.9017', '22.76', '1,000', '800', '4,000'] in rows
    assert ['`model.num_layers`', '8', '6'] in rows
    assert '```text\nOnce upon a time\n```' in markdown


@pytest.mark.first_quick
@pytest.mark.parametrize(
    'changes',
    [
        {'finished': False, 'splits': {}, 'samples': [], 'steps': 3},
        {'splits': {'test': split(2.0)}},
        {'splits': {'valid': split(2.0) | {'words': None, 'word_perplexity': None}}},
        {'curves': {}},
        {'curves': {'train/loss': [[1, None], [2, None]], 'valid/loss': [[2, 3.0]]}},
        {'curves': {'train/loss': [[1, 0.0], [2, 0.0]], 'train/grad_norm': [[1, 1e30], [2, -1]]}},
        {'curves': {'train/loss': [[1, 900.0], [2, 2000.0]]}},
        {'throughput': {'tokens_per_second': None, 'step_seconds_median': None, 'mfu': None}},
        {'tasks': {'wmt': {'bleu': 27.5, 'signature': 'nrefs:1|tok:13a'}}},
        {'environment': {}, 'history': [], 'config': {}},
    ],
    ids=lambda changes: ' '.join(changes),
)
def test_reports_of_runs_that_lack_something(tmp_path, changes):
    made = make(tmp_path / 'run', **changes)
    path = report.write(tmp_path / 'run', made, BASE)
    reader = assert_stands_alone(path.read_text(encoding='utf-8'))
    assert ('Not finished: 3 of 1000 steps' in reader.text) == (not made['finished'])
    assert 'nan' not in reader.text.lower()


@pytest.mark.parametrize('name', ['causal', 'classification'])
def test_only_nats_of_tokens_have_a_perplexity(tmp_path, name):
    made = make(tmp_path / 'run', config={'objective.name': name})
    markup = report.write(tmp_path / 'run', made, BASE).read_text()
    (figure,) = re.findall('<figure><figcaption>Loss<.*?</figure>', markup, re.DOTALL)
    for part in ('>loss (nats per token)<', '>perplexity<'):
        assert (part in figure) == (name == 'causal')
    assert ('>loss<' in figure) == (name == 'classification')
    assert ('may lie above the top' in markup) == (name == 'causal')


def test_curves_count_a_step_once_and_keep_spikes(tmp_path):
    steps = 50_000
    losses = np.ones(steps)
    losses[31_234] = 99.0
    lines = [json.dumps({'step': s, 'train/loss': losses[s], 'time': 1.0}) for s in range(steps)]
    lines += [json.dumps({'step': 5, 'train/loss': 2.0})]
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines))
    curve = report.curves(tmp_path)
    assert list(curve) == ['train/loss']
    points = curve['train/loss']
    assert len(points) <= 20_000
    assert points[0] == [0, 1.0]
    assert points[-1] == [steps - 1, 1.0]
    assert [31_234, 99.0] in points
    assert [5, 2.0] in points
    assert points == sorted(points)
    assert report.curves(tmp_path / 'nowhere') == {}


def test_smooth():
    line = [[x, 3.0 * x + 1] for x in range(200)]
    smoothed = plots.smooth(line, 0.1)
    assert smoothed[:190] == [[x, pytest.approx(y)] for x, y in line[:190]]
    spike = [list(point) for point in line]
    spike[100][1] = 1e6
    spike[50][1] = math.nan
    assert max(y for _, y in plots.smooth(spike, 0.1)) <= line[-1][1]
    assert len(plots.smooth(line * 20, most=1000)) == 1000
    assert plots.smooth([]) == []


def test_environment_is_complete_and_never_raises(monkeypatch):
    found = report.environment()
    assert json.loads(json.dumps(found)) == found
    assert {'device', 'devices', 'cpu', 'cores', 'platform', 'python', 'jax', 'command'} <= set(
        found
    )
    assert found['devices'] >= 1
    monkeypatch.setenv('PATH', '')  # No git.
    assert 'commit' not in report.environment()


def test_commit_is_of_the_project_only(tmp_path):
    def git(*arguments):
        identity = ['-c', 'user.name=a', '-c', 'user.email=a@b.c']
        subprocess.run(
            ['git', *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    assert environment._commit(tmp_path) == {}
    git('init')
    (tmp_path / 'inside').mkdir()
    (tmp_path / 'file').write_text('1')
    git('add', '.')
    git('commit', '--no-gpg-sign', '--no-verify', '-m', 'one')
    clean = environment._commit(tmp_path.resolve())
    assert len(clean['commit']) == 40
    assert clean['uncommitted_changes'] is False
    (tmp_path / 'file').write_text('2')
    assert environment._commit(tmp_path.resolve()) == {**clean, 'uncommitted_changes': True}
    assert environment._commit((tmp_path / 'inside').resolve()) == {}


def test_numbers():
    values = (3, 12_345_678, 24.5312, 3.0, 0.5, 1.2e-5, 28_573.4, 1e20, True, None, math.nan, 'a')
    shown = ('3', '12,345,678', '24.53', '3.000', '0.5000', '1.2e-05', '28,573', '1.000e+20')
    assert tuple(page.number(value) for value in values) == (*shown, 'True', '–', '–', 'a')


def sweep(seed=0, noise=0.0, size=120):
    """A range test whose loss falls steepest at 1e-3 and diverges from 0.1 on."""
    rates = np.geomspace(1e-6, 1, size)
    losses = 8 - 4 / (1 + (1e-3 / rates) ** 1.5) + (rates / 0.1) ** 2
    return rates, losses + noise * np.random.default_rng(seed).normal(size=size)


@pytest.mark.parametrize('seed', range(8))
def test_the_suggestion_is_where_the_loss_falls_steepest(seed):
    rates, losses = sweep(seed, noise=0.08)
    assert 4e-4 < report.suggest_learning_rate(rates, losses) < 2.5e-3


def test_the_suggestion_without_noise():
    rates, losses = sweep()
    suggestion = report.suggest_learning_rate(rates, losses)
    assert suggestion == pytest.approx(1e-3, rel=0.15)
    # Relations: the unit of the rates carries over, that of the losses does not matter.
    assert report.suggest_learning_rate(rates * 10, losses) == pytest.approx(10 * suggestion)
    assert report.suggest_learning_rate(rates, 3 * losses + 1) == pytest.approx(suggestion)
    # Neither the order, nor steps without a loss, nor how it diverges.
    assert report.suggest_learning_rate(rates[::-1], losses[::-1]) == pytest.approx(suggestion)
    gaps = [math.nan if i in (3, 60) or i > 110 else loss for i, loss in enumerate(losses)]
    assert report.suggest_learning_rate(rates, gaps) == pytest.approx(suggestion, rel=0.15)
    wild = [1e9 if i > 110 else loss for i, loss in enumerate(losses)]
    assert report.suggest_learning_rate(rates, wild) == pytest.approx(suggestion)
    spike = [50.0 if i == 30 else loss for i, loss in enumerate(losses)]
    assert report.suggest_learning_rate(rates, spike) == pytest.approx(suggestion)


@pytest.mark.parametrize(
    ('losses', 'message'),
    [([math.nan] * 20, '0 finite losses'), (np.linspace(5, 9, 20), 'falls at no learning rate')],
)
def test_a_useless_range_test_is_one_line(losses, message):
    with pytest.raises(InputError, match=message):
        report.suggest_learning_rate(np.geomspace(1e-5, 1, 20), losses)


def test_learning_rate_plot(tmp_path):
    rates, losses = sweep(noise=0.05)
    points = [*zip(rates, losses, strict=True), (2.0, math.nan)]
    path = report.learning_rate_plot(points, 1e-3, tmp_path / 'folder' / 'lr.png')
    assert path.read_bytes().startswith(b'\x89PNG\r\n\x1a\n')


def write_run(folder, **changes):
    made = make(folder, **changes)
    report.write(folder, made, BASE)
    return folder


def test_compare(tmp_path):
    a = write_run(tmp_path / 'alpha', config={'model.num_layers': 2})
    b = write_run(tmp_path / 'beta', splits={'valid': split(2.25)}, config={'data.batch_size': 32})
    shown = report.compare([a, b], tmp_path / 'out')
    rows = [re.split(r'  +', line) for line in shown.splitlines()]
    assert ['valid', 'perplexity', 'bits/byte', 'word perplexity'] in rows
    assert ['alpha', '12.18', '0.9017', '22.76'] in rows
    assert ['beta', '9.488*', '0.8115*', '16.65*'] in rows
    assert ['model.num_layers', '2', '6'] in rows
    assert ['data.batch_size', '16', '32'] in rows
    assert 'tokenizers differ' not in shown
    assert 'test text differs' in shown  # beta has no test split
    content = json.loads((tmp_path / 'out' / 'compare.json').read_text())
    assert [run['run'] for run in content['runs']] == ['alpha', 'beta']
    assert content['config']['model.num_layers'] == {'alpha': 2, 'beta': 6}
    markdown = (tmp_path / 'out' / 'compare.md').read_text()
    assert r'| beta | 9.488\* | 0.8115\* | 16.65\* |' in markdown
    reader = assert_stands_alone((tmp_path / 'out' / 'compare.html').read_text())
    for part in ('Validation over steps', 'Training over training tokens', 'alpha', 'beta'):
        assert part in reader.text


def test_compare_runs_with_different_tokenizers(tmp_path):
    a = write_run(tmp_path / 'a')
    b = write_run(
        tmp_path / 'b', splits={'valid': split(1.0, 4000)}, config={'tokenizer.kind': 'bytes'}
    )
    shown = report.compare([a, b], tmp_path / 'out')
    assert 'tokenizers differ: compare bits per byte and word perplexity only' in shown
    # The bytes' perplexity is lower, and not better.
    assert re.search(r'b +2\.718 +1\.443 +148\.4\n', shown)
    assert re.search(r'a +12\.18 +0\.9017\* +22\.76\*\n', shown)
    text = assert_stands_alone((tmp_path / 'out' / 'compare.html').read_text()).text
    assert 'bits per byte' in text
    assert 'Training over steps' not in text


def test_compare_tests_translations_against_the_first_run(tmp_path):
    """A run that is right, one that is often wrong and one that is right too."""
    folders = [write_run(tmp_path / name, tasks={'test, beam 4': {}}) for name in 'abc']
    for folder, wrong in zip(folders, (0, 20, 0), strict=True):
        lines = [
            {'source': str(i), 'target': text, 'prediction': 'no idea' if i < wrong else text}
            for i in range(60)
            for text in [f'this is the sentence that has number {i}']
        ]
        predictions.write(folder / 'predictions', 'test, beam 4', lines)
    shown = report.compare(folders, tmp_path / 'out')
    rows = [re.split(r'  +', line) for line in shown.splitlines()]
    ((bleu, chrf),) = [(row[1], row[5]) for row in rows if row[0] == 'b' and len(row) == 9]
    assert ['a', '100.00*', '–', '–', '–', '100.00*', '–', '–', '–'] in rows
    assert float(bleu) < 80
    assert float(chrf) < 80
    same = ['100.00*', '+0.00', '[+0.00, +0.00]', '1.000']
    assert ['c', *same, *same] in rows
    assert 'compared with those of the first run by paired bootstrap' in shown
    content = json.loads((tmp_path / 'out' / 'compare.json').read_text())['translations']
    assert set(content['test, beam 4']) == {'b', 'c'}
    assert content['test, beam 4']['b']['bleu']['p'] < 0.01
    assert content['test, beam 4']['b']['bleu']['baseline'] == 'a'
    assert r'| a | 100.00\* |' in (tmp_path / 'out' / 'compare.md').read_text()
    assert (
        'test, beam 4' in assert_stands_alone((tmp_path / 'out' / 'compare.html').read_text()).text
    )


TASKS = {
    'cats': {'objective': {'name': 'classification'}},
    'graph': {},
    'pairs': {'objective': {'name': 'contrastive'}},
    'text': {'objective': {'name': 'masked', 'pairs': 'next'}},
}


def write_tasks(folder, accuracy, size=16, weight=1.0, rates='fixed'):
    """A run of several tasks, whose measures are all made of one of them."""
    of_texts = {'loss': 1 - accuracy, 'accuracy': accuracy, 'texts': 100}
    links = {'mrr': accuracy, 'hits@1': 0.1, 'hits@10': accuracy, 'questions': 12, 'signature': 's'}
    pair = {'pair/loss': 1 - accuracy, 'pair/accuracy': accuracy}
    unknown = {'bits_per_byte': None, 'word_perplexity': None, 'words': None, 'bytes': None}
    curves = {'train/loss': [[10, 2.0], [20, 1.0]], 'valid/loss': [[10, 2.0], [20, 1.0]]}
    curves |= {f'valid/{task}/loss': [[10, 2.0], [20, 1.0]] for task in TASKS}
    curves |= {f'valid/{task}/accuracy': [[10, 0.1], [20, accuracy]] for task in TASKS}
    made = make(
        folder,
        splits={'text valid': split(3 - accuracy) | unknown | pair},
        tasks={
            'cats valid': of_texts,
            'graph test, all 135 candidates': links,
            'pairs valid': of_texts,
        },
        curves=curves,
        config={'data.batch_size': size, 'multitask.rates': rates},
    )
    made['config']['tasks'] = {**TASKS, 'cats': {**TASKS['cats'], 'weight': weight}}
    report.write(folder, made, BASE)
    return folder


def test_compare_puts_the_measures_of_tasks_side_by_side(tmp_path):
    a, b = write_tasks(tmp_path / 'a', 0.5), write_tasks(tmp_path / 'b', 0.75)
    shown = report.compare([a, b], tmp_path / 'out')
    rows = [re.split(r'  +', line) for line in shown.splitlines()]
    for row in (
        ['cats valid', 'loss', 'accuracy'],
        ['a', '0.5000', '0.5000'],
        ['b', '0.2500*', '0.7500*'],
        ['graph test, all 135 candidates', 'mrr', 'hits@1', 'hits@10'],
        ['b', '0.7500*', '0.1000*', '0.7500*'],
        ['text valid', 'perplexity', 'pair loss', 'pair accuracy'],
        ['b', '9.488*', '0.2500*', '0.7500*'],
    ):
        assert row in rows
    assert rows.count(['b', '0.2500*', '0.7500*']) == 2  # cats and pairs
    assert max(map(len, shown.splitlines())) <= 100
    assert 'differ between the runs' not in shown
    reader = assert_stands_alone((tmp_path / 'out' / 'compare.html').read_text())
    for title in (
        'Validation over steps',
        'Training over steps',
        'Validation accuracy of cats over steps',
        'Validation loss of text over steps',
    ):
        assert title in reader.text
    assert 'Validation accuracy of text' not in reader.text
    assert '| cats valid |' not in (tmp_path / 'out' / 'compare.md').read_text()
    assert r'| b | 0.2500\* | 0.7500\* |' in (tmp_path / 'out' / 'compare.md').read_text()


def test_compare_marks_no_best_of_what_differs(tmp_path):
    a, b = write_tasks(tmp_path / 'a', 0.5), write_tasks(tmp_path / 'b', 0.75, size=32)
    one = write_run(tmp_path / 'one')
    shown = report.compare([a, b, one], tmp_path / 'out')
    rows = [re.split(r'  +', line) for line in shown.splitlines()]
    assert rows.count(['b', '0.2500*', '0.7500*']) == 1  # cats
    assert rows.count(['b', '0.2500', '0.7500']) == 1  # pairs, told from more others
    assert "The texts of 'pairs valid', or how they are measured, differ" in shown
    # A run without the tasks is in none of their tables.
    assert sum(row[0] == 'one' for row in rows) == 4  # Of the splits, and of the runs.


@pytest.mark.first_quick
@pytest.mark.parametrize(
    ('changes', 'validation', 'training'),
    [({'weight': 2.0}, False, False), ({}, True, True), ({'rates': 'progress'}, True, False)],
)
def test_losses_of_other_mixtures_are_in_no_figure(tmp_path, changes, validation, training):
    a, b = write_tasks(tmp_path / 'a', 0.5), write_tasks(tmp_path / 'b', 0.75, **changes)
    report.compare([a, b], tmp_path / 'out')
    markup = (tmp_path / 'out' / 'compare.html').read_text()
    assert ('Validation over steps' in markup) == validation
    assert ('Training over steps' in markup) == training
    assert 'Validation loss of graph over steps' in markup
    assert 'nats per token' not in markup


@pytest.mark.parametrize('name', FILES)
def test_a_tokenizer_is_known_by_its_file(name, tmp_path):
    a, b = write_run(tmp_path / 'a'), write_run(tmp_path / 'b', config={'data.train': 'text:x'})
    for folder in (a, b):
        (folder / name).write_bytes(b'same')
    assert 'tokenizers differ' not in report.compare([a, b], tmp_path / 'out')
    (b / name).write_bytes(b'other')
    assert 'tokenizers differ' in report.compare([a, b], tmp_path / 'out')


def test_compare_says_what_is_wrong_in_one_line(tmp_path):
    good = write_run(tmp_path / 'brown_small')
    (tmp_path / 'empty').mkdir()
    half = write_run(tmp_path / 'half', finished=False, splits={})
    torn = write_run(tmp_path / 'torn')
    (torn / 'report.json').write_text('{"name": ')
    for folders, message in (
        ([], 'no runs'),
        ([good, tmp_path / 'brown_smal'], r"brown_smal' does not exist.*brown_small'\?"),
        ([tmp_path / 'empty'], "empty' has no report.json"),
        ([good, half], r"half' is not finished \(step 60 of 1000\)"),
        ([torn], 'not whole JSON'),
    ):
        with pytest.raises(InputError, match=message) as raised:
            report.compare(folders, tmp_path / 'out')
        assert '\n' not in str(raised.value)


def test_runs_of_one_name_are_told_apart_by_folder(tmp_path):
    a, b = write_run(tmp_path / 'x' / 'run'), write_run(tmp_path / 'y' / 'run')
    shown = report.compare([a, b], tmp_path / 'out')
    assert str(a) in shown
    assert str(b) in shown


def test_many_runs_have_lines_that_differ(tmp_path):
    series = [plots.Series(str(i), [[0, i], [1, i]], 'line', i) for i in range(18)]
    swatches = {page._swatch(one) for one in series}
    assert len(swatches) == 18


def test_matplotlib_is_imported_only_when_it_draws():
    code = 'import lm.report, sys; assert "matplotlib" not in sys.modules'
    root = Path(report.__file__).parent.parent
    subprocess.run([sys.executable, '-c', code], cwd=root, check=True)
