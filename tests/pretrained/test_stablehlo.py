"""Programs of StableHLO say what the model says, from Python and from C++, without this project."""

import functools
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import lm
from lm import config as configs
from lm import pretrained
from lm import run as runs
from lm.errors import InputError
from lm.inference import LanguageModel
from lm.tokenizer import Bytes

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')

CASES = {
    'decoder': {},
    'windows': {'attention': ('causal & window(6)', 'causal')},
    'bigbird': {'attention': ('bigbird(4, 4, 1)',), 'architecture': 'encoder'},
    'gated delta': {'attention': ('gated_delta',), 'position': 'none'},
    'encoder': {'architecture': 'encoder', 'attention': ('full',), 'position': 'learned'},
    'pairs': {'architecture': 'encoder', 'attention': ('full',), 'token_types': 2},
    'encoder_decoder': {'architecture': 'encoder_decoder', 'position': 'relative'},
}
OBJECTIVES = {'encoder': 'masked', 'encoder_decoder': 'span_corruption', 'decoder': 'causal'}


@functools.cache
def built(name):
    """Returns a model that was not trained."""
    model = {'num_layers': 2, 'embed_dim': 32, 'num_heads': 2, 'dtype': 'float32'} | CASES[name]
    objective = OBJECTIVES[model.get('architecture', 'decoder')]
    config = lm.get_config(
        'base',
        data={'train': 'builtin:pydocs', 'length': 32, 'source_length': 24, 'batch_size': 8}
        | {'packing': False},
        tokenizer={'kind': 'bytes', 'sentinels': 20, 'mask': True},
        model=model,
        objective={'name': objective},
    )
    parsed = configs.parse(config)
    run = runs.build(parsed, Bytes(), runs.check_mesh(parsed))
    params = jax.jit(lambda: jax.tree.map(lambda x: x * 2, run.steps.initial().params))()
    return LanguageModel(run, jax.tree.map(jax.numpy.asarray, jax.device_get(params)))


def inputs(name, b, t, s):
    """Returns what a program reads, by name."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 200, (b, t), np.int32)
    there = (np.arange(t) < t - np.arange(b)[:, None]).astype(np.int32)
    model = CASES[name].get('architecture', 'decoder')
    if model == 'encoder':
        types = {'token_types': (np.arange(t) > t // 2).astype(np.int32) + 0 * tokens}
        return {'tokens': tokens, 'segment_ids': there} | (types if name == 'pairs' else {})
    if model == 'encoder_decoder':
        sources = rng.integers(4, 200, (b, s), np.int32)
        there = (np.arange(s) < s - np.arange(b)[:, None]).astype(np.int32)
        return {'encoder_inputs': sources, 'encoder_segment_ids': there, 'tokens': tokens}
    return {'tokens': tokens}


@functools.cache
def forward(name):
    model = built(name)
    return functools.partial(jax.jit(model.run.steps.model.apply), {'params': model.params})


def expected(name, given):
    given = dict(given)
    made = forward(name)(given.pop('tokens'), **given)
    return {key: np.asarray(x) for key, x in made.items()} if isinstance(made, dict) else made


ALONE = """
import sys
sys.modules['lm'] = sys.modules['flax'] = None
import jax, numpy as np
from safetensors.numpy import load_file
folder, there, outside = sys.argv[1:]
f = jax.export.deserialize(open(f'{folder}/model.jax_export', 'rb').read())
given = np.load(there)
weights = (load_file(f'{folder}/model.safetensors'),) if outside == 'outside' else ()
np.savez(f'{there}.out.npz', **f.call(*weights, *(given[name] for name in given.files)))
"""


@pytest.mark.first_quick
@pytest.mark.parametrize('name', CASES)
def test_any_shape_from_python(name, tmp_path):
    pretrained.save_stablehlo(built(name), tmp_path / 'program')
    program = jax.export.deserialize((tmp_path / 'program/model.jax_export').read_bytes())
    from safetensors.numpy import load_file

    weights = load_file(tmp_path / 'program/model.safetensors')
    shapes = ((1, 2, 5), (3, 20, 9), (2, 32, 24))
    for b, t, s in shapes if name != 'gated delta' else ((2, 32, 24), (3, 32, 24)):
        given = inputs(name, b, t, s)
        found, right = program.call(weights, *given.values()), expected(name, given)
        right = right if isinstance(right, dict) else {'logits': right}
        assert found.keys() == right.keys()
        for key in right:
            np.testing.assert_allclose(found[key], right[key], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize('weights', ['outside', 'inside'])
def test_without_this_project(weights, tmp_path):
    folder = tmp_path / 'program'
    pretrained.save_stablehlo(built('decoder'), folder, weights=weights)
    assert (folder / 'model.safetensors').exists() is (weights == 'outside')
    given = inputs('decoder', 2, 9, 0)
    np.savez(tmp_path / 'given.npz', **given)
    command = [sys.executable, '-c', ALONE, folder, tmp_path / 'given.npz', weights]
    subprocess.run(command, check=True, timeout=300)
    found = np.load(tmp_path / 'given.npz.out.npz')['logits']
    np.testing.assert_allclose(found, expected('decoder', given), atol=2e-5)


@pytest.mark.reference
@pytest.mark.parametrize('weights', ['outside', 'inside'])
@pytest.mark.parametrize('name', ['decoder', 'encoder', 'encoder_decoder'])
def test_from_cpp(name, weights, tmp_path):
    """By the commands of the README there; `iree-run-module` is a C++ program."""
    pytest.importorskip('iree.compiler', reason="needs pip install '.[reference]'")
    folder = tmp_path / 'program'
    pretrained.save_stablehlo(built(name), folder, weights=weights, shape=(2, 16, 8))
    given = inputs(name, 2, 16, 8)
    for key, value in given.items():
        np.save(folder / f'{key}.npy', value)
    script = re.search(r'```sh\n(.*?)```', (folder / 'README.md').read_text(), re.DOTALL)[1]
    options = ''
    if weights == 'outside':
        from safetensors.numpy import load_file

        tensors = load_file(folder / 'model.safetensors')
        signature = json.loads((folder / 'signature.json').read_text())
        for number, argument in enumerate(signature['arguments']):
            if argument['name'] in tensors:
                np.save(folder / f'w{number}.npy', tensors[argument['name']])
                options += f' --input=@w{number}.npy'
    script = script.split(' # ')[0].replace('local-task', f'local-task{options}', 1)
    place = shutil.which('iree-compile') or f'{sys.prefix}/bin/iree-compile'
    path = place.rpartition('/')[0]
    right = expected(name, given)
    right = right if isinstance(right, dict) else {'logits': right}
    outputs = ''.join(f' --output=@{key}.npy' for key in sorted(right))
    subprocess.run(
        ['bash', '-ec', f'PATH={path}:$PATH\n{script.rstrip()}{outputs}'],
        cwd=folder,
        check=True,
        timeout=600,
    )
    for key in right:
        np.testing.assert_allclose(np.load(folder / f'{key}.npy'), right[key], atol=1e-4)


def test_weights_have_the_precision_asked_for(tmp_path):
    pretrained.save_stablehlo(built('decoder'), tmp_path / 'program', dtype='bfloat16')
    signature = json.loads((tmp_path / 'program/signature.json').read_text())
    kinds = {argument['name']: argument['dtype'] for argument in signature['arguments']}
    assert kinds.pop('tokens') == 'int32'
    assert set(kinds.values()) == {'bfloat16'}
    assert signature['results'] == [
        {'name': 'logits', 'shape': ['b', 't', signature['results'][0]['shape'][2]]}
        | {'dtype': 'float32'}
    ]


def test_mistakes_are_named(tmp_path):
    def save(**options):
        pretrained.save_stablehlo(built('decoder'), tmp_path / 'program', **options)

    with pytest.raises(InputError, match="--shape = 1,64 is longer than the model's 32 tokens"):
        save(shape=(1, 64))
    with pytest.raises(InputError, match='--shape = 5 is no B,T'):
        save(shape=(5,))
    with pytest.raises(InputError, match="weights = 'within' is not known"):
        save(weights='within')
    assert not (tmp_path / 'program').exists()
    (tmp_path / 'program').mkdir()
    (tmp_path / 'program/mine').touch()
    with pytest.raises(InputError, match='is not empty'):
        save()
    assert [path.name for path in (tmp_path / 'program').iterdir()] == ['mine']
