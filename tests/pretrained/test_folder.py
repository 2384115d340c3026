"""Folders that we write and read: the same bits back, and one line for whatever is wrong with one."""

import json
import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy
import tokenizers

import lm
from lm import config as configs
from lm import mesh, pretrained, tokenizer
from lm import run as runs
from lm import workdir as workdirs
from lm.checkpoint import Checkpoints
from lm.errors import InputError
from lm.inference import LanguageModel

pytestmark = pytest.mark.usefixtures('no_charts')

SMALL = {'num_layers': 2, 'embed_dim': 32, 'num_heads': 2, 'vocab_multiple': 1, 'dtype': 'float32'}
# Config, what differs, and the family that it is of.
CASES = {
    'gpt2': ('gpt2_124m', {}, {}),
    'qwen3': ('quickstart', {}, {}),
    'llama': ('quickstart', {'qk_norm': False}, {}),
    'mistral': ('quickstart', {'qk_norm': False, 'attention': ('causal & window(7)',)}, {}),
    'gpt_neox': (
        'quickstart',
        {
            'qk_norm': False,
            'norm': 'layernorm',
            'bias': True,
            'activation': 'gelu',
            'parallel_residual': True,
            'rotary_fraction': 0.5,
        },
        {},
    ),
    'bert': ('bert_base', {'mlp_dim': 64}, {'pairs': 'next'}),
    't5': ('t5_small', {'head_dim': 16, 'mlp_dim': 64}, {}),
    'marian': (
        'transformer_base_wmt14',
        {'mlp_dim': 64, 'activation': 'relu', 'logit_bias': True},
        {},
    ),
}


def make(name, length=24):
    base, model, objective = CASES[name]
    config = lm.get_config(
        base,
        model=SMALL | model,
        **({'objective': objective} if objective else {}),
        data={'length': length, 'source_length': length, 'batch_size': 8, 'packing': False},
        tokenizer={'kind': 'bytes', 'sentinels': 9 if name == 't5' else 0, 'symbols': ()},
        optimizer={'accumulation': 1},
    )
    parsed = configs.parse(config)
    text = tokenizer.Bytes()
    run = runs.build(parsed, text, mesh.one_device())
    params = run.steps.init().params
    keys = iter(jax.random.split(jax.random.key(1), 200))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)
    return LanguageModel(run, params)


@pytest.fixture
def folder(tmp_path):
    pretrained.save(make('gpt2'), tmp_path / 'model')
    return tmp_path / 'model'


def same_bits(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.first_quick
@pytest.mark.parametrize('name', CASES)
def test_what_is_written_is_read_with_the_same_bits(name, tmp_path):
    model = make(name)
    assert pretrained.save(model, tmp_path / 'out').name == name
    again = pretrained.from_pretrained(tmp_path / 'out')
    same_bits(again.params, model.params)
    theirs = json.loads((tmp_path / 'out' / 'config.json').read_text())
    second = pretrained.save(again, tmp_path / 'twice', family=name)
    assert second.name == name
    told = json.loads((tmp_path / 'twice' / 'config.json').read_text())
    assert told == theirs
    files = [(tmp_path / part / 'model.safetensors').read_bytes() for part in ('out', 'twice')]
    assert files[0] == files[1]


def test_a_mesh_gets_its_parts(folder):
    one = pretrained.from_pretrained(folder)
    over = {'mesh.data': 1, 'mesh.fsdp': 2, 'mesh.tensor': 2, 'mesh.sequence': 2}
    many = pretrained.from_pretrained(folder, overrides=over)
    kernel = many.params['layers']['mlp']['up']['kernel']
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    same_bits(many.params, one.params)
    with pytest.raises(InputError, match="'config.mesh.fdsp' is not a config key.*'mesh.fsdp'"):
        pretrained.from_pretrained(folder, overrides={'mesh.fdsp': 2})


@pytest.mark.slow
def test_import_makes_a_workdir_and_export_gives_the_folder_back(folder, tmp_path):
    said = []
    run = pretrained.import_model(folder, tmp_path / 'run', say=said.append)
    model = lm.load(tmp_path / 'run')
    assert (model.step, run.config.data.length, said) == (0, 24, [])
    ids = [[5, 60, 7, 90]]
    np.testing.assert_array_equal(model.logits(ids), pretrained.from_pretrained(folder).logits(ids))
    assert isinstance(model.generate('a', max_tokens=3), str)
    pretrained.export(tmp_path / 'run', tmp_path / 'back')
    for path in folder.iterdir():
        found = (tmp_path / 'back' / path.name).read_bytes()
        if path.name == 'README.md':  # It names its folder.
            found = found.replace(b'back', b'model')
        assert found == path.read_bytes(), path.name
    with pytest.raises(InputError, match='is not empty'):
        pretrained.import_model(folder, tmp_path / 'run')
    with pytest.raises(InputError, match='is not empty'):
        pretrained.export(tmp_path / 'run', tmp_path / 'back')


def test_tensors_go_into_as_many_files_as_they_need(tmp_path):
    arrays = {name: np.full((2, 3), i, np.float32) for i, name in enumerate('abc')}
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    pretrained.folder.Writer(tmp_path, shapes, limit=50).write(iter(arrays.items()))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        'model-00001-of-00002.safetensors',
        'model-00002-of-00002.safetensors',
        'model.safetensors.index.json',
    ]
    with pretrained.folder.Weights(tmp_path) as weights:
        for name, array in arrays.items():
            np.testing.assert_array_equal(weights.read(name), array)
    first = safetensors.numpy.load_file(tmp_path / names[0])
    assert {name: array.tolist() for name, array in first.items()} == {
        name: arrays[name].tolist() for name in 'ab'
    }


def change(folder, **keys):
    path = folder / 'config.json'
    found = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in found.items() if value != 'drop'}))


def weights(folder, edit):
    path = folder / 'model.safetensors'
    tensors = safetensors.numpy.load_file(path)
    edit(tensors)
    safetensors.numpy.save_file(tensors, path)


def index(folder, **files):
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': files}))


LN = 'transformer.h.1.ln_1.weight'

# What is wrong, and what the line says.
WRONG = {
    'no folder': (lambda f: f.rename(f.with_name('x')), 'there is no such folder'),
    'no config': (lambda f: (f / 'config.json').unlink(), "config.json' cannot be read"),
    'not JSON': (lambda f: (f / 'config.json').write_text('{'), 'is damaged, it is not JSON'),
    'no object': (lambda f: (f / 'config.json').write_text('[1]'), 'not a JSON object'),
    'a family': (lambda f: change(f, model_type='gpt3'), "'gpt3' is not known.*'gpt2'"),
    'no family': (lambda f: change(f, model_type='drop'), "'None' is not known"),
    'an option': (
        lambda f: change(f, scale_attn_by_inverse_layer_idx=True),
        'scale_attn_by_inverse_layer_idx = true is not supported. Supported: false',
    ),
    'a value': (
        lambda f: change(f, activation_function='gelu_old'),
        'activation_function = "gelu_old" is not supported. Did you mean \'gelu\'',
    ),
    'a key': (lambda f: change(f, n_layers=3), "'n_layers' = 3 is not known.*'n_layer'"),
    'a wrong type': (
        lambda f: change(f, activation_function=['gelu']),
        'config.json: activation_function cannot be read',
    ),
    'a deep config': (
        lambda f: (f / 'config.json').write_text('[' * 200_000),
        'is damaged, it is not JSON',
    ),
    'a lacking key': (lambda f: change(f, n_embd='drop'), "lacks 'n_embd'"),
    'a lacking tensor': (
        lambda f: weights(f, lambda t: t.pop(LN)),
        f"lack the tensor '{LN}'",
    ),
    'a surplus tensor': (
        lambda f: weights(f, lambda t: t.update({LN + '2': np.ones(3, np.float32)})),
        rf"'{LN}2' of shape \(3,\) has no place.*'{LN}'",
    ),
    'a layer too many': (lambda f: change(f, n_layer=1), 'has no place in a model'),
    'a shape': (
        lambda f: weights(f, lambda t: t.update({LN: np.ones(7, np.float32)})),
        rf"'{LN}' has the shape \(7,\); by config.json it is \(32,\)",
    ),
    'another width': (lambda f: change(f, n_embd=64), r'has the shape .*32.*it is .*64'),
    'a kind of number': (
        lambda f: weights(f, lambda t: t.update({LN: np.ones(32, np.int8)})),
        'quantized models are not read',
    ),
    'an output matrix that is not the embedding': (
        lambda f: weights(
            f, lambda t: t.update({'lm_head.weight': np.ones((260, 32), np.float32)})
        ),
        "'lm_head.weight' differs from 'transformer.wte.weight'",
    ),
    'a header': (
        lambda f: (f / 'model.safetensors').write_bytes(b'\xff' * 64),
        "model.safetensors' is damaged",
    ),
    'a header of another form': (
        lambda f: (f / 'model.safetensors').write_bytes(
            (40).to_bytes(8, 'little') + b'{"a":["F32",[4],[0,16]]}'.ljust(40) + bytes(16)
        ),
        "model.safetensors' is damaged",
    ),
    'half a file': (
        lambda f: (f / 'model.safetensors').write_bytes(
            (f / 'model.safetensors').read_bytes()[:-100]
        ),
        "model.safetensors' is damaged",
    ),
    'a pickle': (
        lambda f: (f / 'model.safetensors').rename(f / 'pytorch_model.bin'),
        "'pytorch_model.bin', which is not read.*convert to safetensors first",
    ),
    'no weights': (lambda f: (f / 'model.safetensors').unlink(), 'holds no weights'),
    'a way out': (
        lambda f: index(f, **{LN: '../../other.safetensors'}),
        'is not the name of a file in that folder',
    ),
    'a file that is not there': (lambda f: index(f, **{LN: 'b.safetensors'}), "lacks 'b.safeten"),
    'an index that is wrong': (
        lambda f: index(f, other='model.safetensors'),
        "lacks 'other', which",
    ),
    'an empty index': (lambda f: index(f), 'has no weight_map'),
    'no tokenizer': (lambda f: (f / 'tokenizer.json').unlink(), 'holds no tokenizer'),
}


@pytest.mark.parametrize('fault', WRONG)
def test_a_fault_is_one_line(fault, folder):
    edit, message = WRONG[fault]
    edit(folder)
    with pytest.raises(InputError, match=message) as found:
        pretrained.from_pretrained(folder)
    assert '\n' not in str(found.value)


class Harmful:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


def test_nothing_is_unpickled(folder, tmp_path):
    for name in ('pytorch_model.bin', 'training_args.bin', 'model.pt', 'modeling_gpt2.py'):
        (folder / name).write_bytes(pickle.dumps(Harmful(tmp_path / 'ran')))
    pretrained.from_pretrained(folder)
    (folder / 'model.safetensors').unlink()
    with pytest.raises(InputError, match='convert to safetensors first'):
        pretrained.from_pretrained(folder)
    assert not (tmp_path / 'ran').exists()


def test_a_model_of_no_family_says_why(tmp_path):
    model = make('qwen3')
    with pytest.raises(InputError, match="config.model.activation = 'swiglu' is not one of 'gelu'"):
        pretrained.save(model, tmp_path / 'out', family='gpt2')
    with pytest.raises(InputError, match="'llama' has config.model.qk_norm = False and not True"):
        pretrained.save(model, tmp_path / 'out', family='llama')
    with pytest.raises(InputError, match="'gpt3' is not known"):
        pretrained.save(model, tmp_path / 'out', family='gpt3')
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_heads_that_are_not_there_are_new(tmp_path):
    model = make('bert')
    pretrained.save(model, tmp_path / 'out')
    weights(tmp_path / 'out', lambda t: [t.pop(name) for name in [*t] if name.startswith('cls.')])
    said = []
    run = pretrained.import_model(tmp_path / 'out', tmp_path / 'run', say=said.append)
    assert run.config.objective.pairs == 'next'
    assert len(said) == 1
    assert 'head_tokens/dense/kernel' in said[0]
    again = lm.load(tmp_path / 'run').params
    same_bits(again['layers'], model.params['layers'])
    same_bits(again['head_pair']['pooler'], model.params['head_pair']['pooler'])


LLAMA = {
    'vocab_size': 9,
    'hidden_size': 8,
    'intermediate_size': 8,
    'num_hidden_layers': 4,
    'num_attention_heads': 2,
}
WINDOW, ALL = 'causal & window(4)', 'causal'


@pytest.mark.parametrize(
    ('family', 'keys', 'expected'),
    [
        ('gemma2', {'sliding_window': 4}, (WINDOW, ALL)),
        ('qwen2', {'sliding_window': 4}, (ALL,)),
        ('qwen2', {'sliding_window': 4, 'use_sliding_window': True}, (ALL,)),
        (
            'qwen2',
            {'sliding_window': 4, 'use_sliding_window': True, 'max_window_layers': 3},
            (ALL, ALL, ALL, WINDOW),
        ),
        ('qwen3', {'sliding_window': None}, (ALL,)),
        ('mistral', {'sliding_window': 4}, (WINDOW,)),
        ('mistral', {'sliding_window': None}, (ALL,)),
        ('mistral', {}, ('causal & window(4096)',)),
    ],
)
def test_which_layers_have_windows_where_configs_do_not_list_them(family, keys, expected):
    theirs = LLAMA | {'num_key_value_heads': 2} | keys
    entry = pretrained.FAMILIES[family]
    config = pretrained.convert.config_of(entry, theirs, frozenset())
    assert tuple(config.model.attention) == expected


@pytest.mark.slow
def test_old_names_of_norms_and_what_may_be_left_out(tmp_path):
    pretrained.save(make('bert'), tmp_path / 'bert')

    def older(tensors):
        for name in [*tensors]:
            for new, old in (('weight', 'gamma'), ('bias', 'beta')):
                if name.endswith(f'LayerNorm.{new}'):
                    tensors[name.removesuffix(new) + old] = tensors.pop(name)

    weights(tmp_path / 'bert', older)
    same_bits(pretrained.from_pretrained(tmp_path / 'bert').params, make('bert').params)
    pretrained.save(make('marian'), tmp_path / 'marian')
    weights(tmp_path / 'marian', lambda tensors: tensors.pop('final_logits_bias'))
    found = pretrained.from_pretrained(tmp_path / 'marian').params
    assert not found['decoder']['logit_bias'].any()


@pytest.mark.first_quick
@pytest.mark.parametrize('template', ['<s> $A </s>', '$A </s>', '</s> <s> $A </s>'])
def test_an_encoder_reads_a_text_as_its_tokenizer_puts_it(template, tmp_path):
    pretrained.save(make('marian'), tmp_path / 'out')
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
    theirs.post_processor = tokenizers.processors.TemplateProcessing(
        template, None, [('<s>', 1), ('</s>', 2)]
    )
    theirs.save(str(tmp_path / 'out' / 'tokenizer.json'))
    ours = pretrained.from_pretrained(tmp_path / 'out')
    assert ours.run.config.tokenizer.begin_sources == (template[0] == '<')
    assert ours.given('A cat') == theirs.encode('A cat').ids
    assert len(ours.given('A cat' * 20, cut=True)) == 24


@pytest.mark.slow
def test_training_goes_on_from_an_import(folder, tmp_path):
    over = {'data.train': 'builtin:pydocs[:5%]', 'data.valid': '', 'data.test': ''}
    over |= {'train.steps': 2, 'schedule.warmup_steps': 0, 'optimizer.learning_rate': 0.0}
    over |= {'optimizer.clip_norm': 0.0, 'data.batch_size': 8, 'log.tensorboard': False}
    run = pretrained.import_model(folder, tmp_path / 'run', over)
    assert run.config.optimizer.name == lm.get_config('base').optimizer.name
    lm.train(workdirs.read_config(tmp_path / 'run'), tmp_path / 'run')
    model = lm.load(tmp_path / 'run')
    assert model.step == 2
    same_bits(model.params, pretrained.from_pretrained(folder).params)
    pretrained.import_model(folder, tmp_path / 'other', {'generate.top_k': 5})
    config = workdirs.read_config(tmp_path / 'other')
    assert config['optimizer']['name'] == 'sgd'
    with pytest.raises(InputError, match='was imported to be used as it is'):
        lm.train(config, tmp_path / 'other')


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'keep'])
def test_an_import_keeps_a_precision(dtype, tmp_path):
    kind = 'bfloat16' if dtype == 'keep' else dtype
    pretrained.save(make('gpt2'), tmp_path / 'model', dtype=kind)
    pretrained.import_model(tmp_path / 'model', tmp_path / 'run', dtype=dtype)
    pretrained.import_model(tmp_path / 'model', tmp_path / 'wide')
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / name / 'checkpoints').rglob('*'))
        for name in ('run', 'wide')
    ]
    assert sizes[0] < 0.8 * sizes[1]
    same_bits(lm.load(tmp_path / 'run').params, lm.load(tmp_path / 'wide').params)
    pretrained.save(lm.load(tmp_path / 'run'), tmp_path / 'again', dtype=kind)
    files = [(tmp_path / name / 'model.safetensors').read_bytes() for name in ('model', 'again')]
    assert files[0] == files[1]
    with pytest.raises(InputError, match='what is trained further has float32'):
        pretrained.import_model(tmp_path / 'model', tmp_path / 'b', {'seed': 1}, dtype=dtype)


def test_the_state_of_an_import_is_of_its_parameters(folder, tmp_path):
    """Optimizers that remember parameters remember these; and there is an average where one is kept."""
    over = {'optimizer.name': 'schedule_free_adamw', 'optimizer.ema_decay': 0.9}
    run = pretrained.import_model(folder, tmp_path / 'run', over)
    with Checkpoints(tmp_path / 'run', run.config.checkpoint, read_only=True) as checkpoints:
        _, state, data = checkpoints.restore(run.steps.shapes)
    right = pretrained.from_pretrained(folder).params
    same_bits(state.params, right)
    same_bits(state.ema, right)
    remembered = jax.tree.leaves(optax.tree_utils.tree_get(state.opt_state, 'z'))
    for z, leaf in zip(remembered, jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(z, leaf)
    assert data == {'next_index': 0}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data.length': 12}, r"wpe.weight' .* config.data.length = 12 was changed"),
        ({'model.embed_dim': 64}, r'config.model.embed_dim = 64 was changed'),
        ({'train.steps': 5}, r'^config.schedule.warmup_steps = 100 is more than'),
        ({'data.batch_size': 12, 'optimizer.accumulation': 5}, r'^config.data.batch_size = 12'),
    ],
)
def test_what_was_changed_and_does_not_fit_is_named(changes, message, folder):
    with pytest.raises(InputError, match=message):
        pretrained.from_pretrained(folder, overrides=changes)


@pytest.mark.slow
def test_the_command_line(folder, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'}

    def run(*arguments):
        command = [sys.executable, '-m', 'lm.main', *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    changes = ('--config.train.steps=300', '--config.generate.temperature=0.5')
    done = run('--mode=import', f'--from={folder}', f'--workdir={tmp_path}/run', *changes)
    assert (done.returncode, done.stderr) == (0, '')
    config = workdirs.read_config(tmp_path / 'run')
    assert (config['train']['steps'], config['generate']['temperature']) == (300, 0.5)
    assert 'parameters' in done.stdout
    done = run(f'--workdir={tmp_path}/run', '--config.seed=1')
    assert done.returncode == 2
    assert 'belongs to another config: seed (0 there, 1 now)' in done.stderr
    done = run('--mode=export', f'--workdir={tmp_path}/run', f'--to={tmp_path}/out')
    assert (done.returncode, done.stderr) == (0, '')
    assert (tmp_path / 'out' / 'config.json').read_text() == (folder / 'config.json').read_text()
    done = run('--mode=import', f'--from={tmp_path}/nothing', f'--workdir={tmp_path}/other')
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1
    assert not (tmp_path / 'other').exists()
