"""The harness asks our models, and `transformers` on their exports: the answers are the same."""

import json

import numpy as np
import pytest

import lm
from lm import pretrained
from lm.errors import InputError

pytest.importorskip('torch', reason="needs pip install '.[reference]'")
pytest.importorskip('lm_eval', reason="needs pip install '.[eval]'")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from lm import harness  # noqa: E402
from lm.evaluate import evaluate_tasks  # noqa: E402

pytestmark = [
    pytest.mark.reference,
    pytest.mark.usefixtures('two_devices', 'no_charts'),
    # Of the harness's and of what it stands on.
    pytest.mark.filterwarnings('ignore'),
]

TASK = """
task: {name}
custom_dataset: !function texts.load
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: right
doc_to_choice: answers
metric_list:
  - metric: acc
  - metric: acc_norm
metadata: {{version: 3}}
"""
DATA = """
import datasets

def load(**_):
    words = 'Return the name of a file or None if object value is not list string'.split()
    rows = [
        {
            'question': ' '.join(words[i % 9 : i % 9 + 1 + i % 4]),
            'answers': [' '.join(words[(i * j) % 11 : (i * j) % 11 + j]) for j in (1, 2, 3)],
            'right': i % 3,
        }
        for i in range(40)
    ]
    made = datasets.Dataset.from_list(rows)
    return {'train': made.select(range(8)), 'test': made.select(range(8, 40))}
"""


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('harness')
    config = lm.get_config(
        'quickstart',
        model={'num_layers': 2, 'embed_dim': 64, 'num_heads': 2, 'dtype': 'float32'},
        data={'train': 'builtin:pydocs[:40]', 'valid': 'builtin:pydocs[:4]', 'test': ''}
        | {'length': 64, 'batch_size': 8},
        tokenizer={'kind': 'bpe', 'vocab_size': 600},
        optimizer={'learning_rate': 4e-3},
        schedule={'kind': 'linear', 'warmup_steps': 2},
        train={'steps': 12, 'eval_every': 0},
        eval={'batches': 2},
        checkpoint={'every': 0},
        generate={'prompts': ()},
        log={'tensorboard': False},
    )
    lm.train(config, folder / 'run')
    return folder / 'run'


@pytest.fixture(scope='module')
def ours(workdir):
    return harness.Model(workdir=str(workdir), batch_size=8)


@pytest.fixture(scope='module')
def theirs(workdir):
    """Returns the harness's own backend on the export; with other arguments another."""
    pretrained.export(workdir, workdir.parent / 'exported')

    def make(**options):
        return HFLM(
            pretrained=str(workdir.parent / 'exported'),
            dtype='float32',
            device='cpu',
            batch_size=4,
            **options,
        )

    return make


@pytest.fixture(scope='module')
def task_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tasks')
    (folder / 'choice.yaml').write_text(TASK.format(name='choice'))
    (folder / 'texts.py').write_text(DATA)
    return folder


def asked(kind, *arguments):
    return [Instance(kind, {}, each, 0) for each in arguments]


LONG = 'Return a list of all the names in the module, or None where it has none. ' * 8


def test_likelihoods_are_the_same(ours, theirs):
    requests = asked(
        'loglikelihood',
        ('Return the', ' name of the file'),
        ('Return the ', 'name'),  # The space goes to the continuation.
        ('', 'If the object is a class'),
        (LONG, ' The end.'),
        ('x', ' is'),
    )
    found, expected = ours.loglikelihood(requests), theirs().loglikelihood(requests)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], atol=1e-3)


def test_rolling_likelihoods_are_the_same_but_for_a_bos_that_theirs_scores(ours, theirs):
    requests = asked('loglikelihood_rolling', ('Return the name.',), (LONG,))
    found = ours.loglikelihood_rolling(requests)
    expected = theirs(add_bos_token=False).loglikelihood_rolling(requests)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    'options',
    [
        {'until': ['\n'], 'max_gen_toks': 12},
        {'until': ['e', 'tion'], 'max_gen_toks': 12},
        {'until': [], 'max_gen_toks': 5, 'do_sample': False},
        {'until': 'the', 'max_gen_toks': 30},
    ],
    ids=str,
)
def test_texts_are_the_same(ours, theirs, options):
    contexts = ('Return the', 'If', LONG, 'The name of a module is', 'x = ')
    requests = asked('generate_until', *((context, dict(options)) for context in contexts))
    assert ours.generate_until(requests) == theirs().generate_until(requests)


@pytest.mark.parametrize('shots', [0, 2])
def test_accuracies_are_the_same(ours, theirs, task_files, shots):
    import lm_eval
    from lm_eval.tasks import TaskManager

    results = [
        lm_eval.simple_evaluate(
            model=model,
            tasks=['choice'],
            num_fewshot=shots,
            task_manager=TaskManager(include_path=str(task_files)),
            log_samples=False,
            bootstrap_iters=0,
        )['results']['choice']
        for model in (ours, theirs())
    ]
    for name in ('acc,none', 'acc_norm,none'):
        assert results[0][name] == results[1][name]


def test_results_are_kept_and_printed(workdir, task_files):
    found, table = evaluate_tasks(workdir, ['choice'], folder=task_files, shots=1, limit=12)
    line = json.loads((workdir / 'evaluations.jsonl').read_text().splitlines()[-1])
    assert line == {'checkpoint': 'latest', 'step': 12, 'task': ''} | found
    choice = found['benchmarks']['choice']
    assert choice['version'] == 3
    assert choice['shots'] == 1
    assert choice['questions'] == 12
    assert 0 <= choice['acc'] <= 1
    assert choice['acc_stderr'] > 0
    assert '|choice' in table


def test_the_model_card_has_the_numbers(workdir, task_files, tmp_path):
    found, _ = evaluate_tasks(workdir, ['choice'], folder=task_files)
    pretrained.export(workdir, tmp_path / 'out')
    about = (tmp_path / 'out/README.md').read_text()
    choice = found['benchmarks']['choice']
    assert (
        f'| choice | 3 | 0 | 32 | acc | {choice["acc"]:.4f} | {choice["acc_stderr"]:.4f} |' in about
    )
    report = json.loads((workdir / 'report.json').read_text())
    assert f'| valid | {report["splits"]["valid"]["loss"]:.4f} |' in about
    assert 'pipeline_tag: text-generation' in about
    # In memory there is no run that anything was measured of.
    pretrained.save(lm.load(workdir), tmp_path / 'again')
    assert '##' not in (tmp_path / 'again/README.md').read_text()


def test_an_encoder_decoder_answers_as_theirs(tmp_path):
    config = lm.get_config(
        't5_small',
        model={'num_layers': 2, 'embed_dim': 64, 'num_heads': 2, 'dtype': 'float32'}
        | {'mlp_dim': 128, 'head_dim': 32},
        data={'train': 'builtin:pydocs', 'valid': 'builtin:pydocs', 'test': '', 'batch_size': 8}
        | {'length': 32, 'source_length': 64},
        tokenizer={'kind': 'bpe', 'vocab_size': 600, 'sentinels': 20},
        train={'steps': 6, 'eval_every': 0},
        schedule={'kind': 'linear', 'warmup_steps': 2},
        eval={'batches': 1},
        optimizer={'accumulation': 1},
        checkpoint={'every': 0},
        generate={'prompts': ()},
        log={'tensorboard': False},
    )
    lm.train(config, tmp_path / 'run')
    pretrained.export(tmp_path / 'run', tmp_path / 'out')
    other = HFLM(pretrained=str(tmp_path / 'out'), dtype='float32', device='cpu', batch_size=4)
    mine = harness.Model(workdir=str(tmp_path / 'run'))
    assert mine.backend == other.backend == 'seq2seq'
    requests = asked('loglikelihood', ('Return the name', 'of a file'), ('If', 'it is not'))
    found, expected = mine.loglikelihood(requests), other.loglikelihood(requests)
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], atol=1e-3)


def test_mistakes_are_named(workdir, task_files):
    with pytest.raises(InputError, match="'choise' is no task of lm_eval .* 'choice'"):
        evaluate_tasks(workdir, ['choise'], folder=task_files)
    with pytest.raises(InputError, match="--task_files = 'nowhere' is no folder"):
        evaluate_tasks(workdir, ['choice'], folder='nowhere')
    with pytest.raises(InputError, match="work_dir is not one. .*'workdir'"):
        harness.Model(work_dir='runs/x')
    with pytest.raises(InputError, match='workdir=FOLDER'):
        harness.Model()
    with pytest.raises(InputError, match="'many' is no number"):
        harness.Model(workdir=str(workdir), batch_size='many')
    with pytest.raises(InputError, match="'-1' is no number"):
        harness.Model(workdir=str(workdir), batch_size=-1)
    with pytest.raises(InputError, match='--limit = 0'):
        evaluate_tasks(workdir, ['choice'], folder=task_files, limit=0)
    with pytest.raises(InputError, match='--shots = -1'):
        evaluate_tasks(workdir, ['choice'], folder=task_files, shots=-1)
    (task_files / 'broken.yaml').write_text(TASK.format(name='broken').replace('texts.', 'none.'))
    with pytest.raises(InputError, match='--tasks=broken cannot be loaded: .*none'):
        evaluate_tasks(workdir, ['broken'], folder=task_files)
    (task_files / 'broken.yaml').unlink()
    with pytest.raises(InputError, match='no template'):
        harness.Model(workdir=str(workdir)).apply_chat_template([])


def test_names_may_be_patterns(workdir, task_files):
    found, _ = evaluate_tasks(workdir, ['choi*', 'choice'], folder=task_files, limit=4)
    assert list(found['benchmarks']) == ['choice']


def test_long_texts_leave_room_for_the_question(ours, caplog):
    made = ours.generate_until(asked('generate_until', ('a b', {'until': [], 'max_gen_toks': 99})))
    assert len(ours.of.run.tokenizer.encode(made[0])) <= 33
    assert 'at most 32 tokens, not 99' in caplog.text


def test_drawn_texts_differ_between_batches(ours):
    options = {'until': [], 'max_gen_toks': 12, 'do_sample': True, 'temperature': 1.0}
    made = ours.generate_until(asked('generate_until', *[('a', options)] * 16))
    assert made[:8] != made[8:]


def test_a_context_of_spaces_goes_to_the_continuation(ours):
    found = ours.loglikelihood(asked('loglikelihood', (' ', 'ab'), ('', ' ab')))
    assert found[0] == found[1]
