"""Every family against `transformers`: logits, layers, loss, generated tokens, and the way back."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from lm import decode, losses, pretrained
from lm.models import Decoder

references = pytest.importorskip('references', reason="needs pip install '.[reference]'")
import safetensors.numpy  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

pytestmark = pytest.mark.reference

ATOL = 1e-4


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
    """Returns (theirs, ours, folder) of a case."""

    @functools.cache
    def make(name):
        folder = tmp_path_factory.mktemp('model')
        theirs = references.write(name, folder)
        return theirs, pretrained.from_pretrained(folder), folder

    return make


def close(ours, theirs, where=...):
    np.testing.assert_allclose(np.asarray(ours)[where], theirs.numpy()[where], rtol=0, atol=ATOL)


def layers(intermediates):
    """Returns the output of each layer, in order."""
    found = intermediates['layers']
    if 'output' in found:
        return list(found['output'][0])
    blocks = [found[f'block_{i}']['output'][0] for i in range(len(found))]
    return [block[n] for n in range(len(blocks[0])) for block in blocks]


@pytest.mark.parametrize('name', references.DECODERS)
def test_decoders_agree(imported, name):
    theirs, ours, _ = imported(name)
    ids, there = references.tokens(3, 24)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(there),
            labels=torch.tensor(np.where(there, ids, -100)),
            output_hidden_states=True,
        )
    logits, kept = ours.run.steps.model.apply(
        {'params': ours.params}, ids, segment_ids=there, mutable=['intermediates']
    )
    close(logits, out.logits, there > 0)
    found = layers(kept['intermediates'])
    assert len(found) == len(out.hidden_states) - 1
    for mine, other in zip(found[:-1], out.hidden_states[1:-1], strict=True):
        close(mine, other, there > 0)
    total, weight, _ = losses.cross_entropy(
        logits[:, :-1], ids[:, 1:].astype(np.int32), there[:, 1:].astype(np.float32)
    )
    assert float(total / weight) == pytest.approx(float(out.loss), abs=ATOL)


@pytest.mark.parametrize('name', references.ENCODERS)
def test_encoders_agree(imported, name):
    theirs, ours, _ = imported(name)
    ids, there = references.tokens(3, 24)
    types = (np.arange(24) > 10).astype(np.int32)[None].repeat(3, 0)
    if ours.run.config.model.token_types < 2:
        types = np.zeros_like(types)
    given = {'token_type_ids': torch.tensor(types)} if name != 'distilbert' else {}
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(there),
            output_hidden_states=True,
            **given,
        )
    said, kept = ours.run.steps.model.apply(
        {'params': ours.params},
        ids,
        segment_ids=there,
        token_types=types,
        mutable=['intermediates'],
    )
    head = 'discriminator' if type(theirs).__name__ == 'ElectraForPreTraining' else 'tokens'
    close(said[head], out.logits if 'logits' in out else out.prediction_logits, there > 0)
    for mine, other in zip(layers(kept['intermediates']), out.hidden_states[1:], strict=True):
        close(mine, other, there > 0)
    pairs = {
        'bert': 'seq_relationship_logits',
        'big bird': 'seq_relationship_logits',
        'albert': 'sop_logits',
    }
    assert ('pair' in said) == (name in pairs)
    if name in pairs:
        close(said['pair'][:, 0], out[pairs[name]])


def test_two_streams_of_xlnet_agree(imported):
    """Of all ranks above 0, each from what is of a lower one."""
    theirs, ours, _ = imported('xlnet')
    ids, _ = references.tokens(3, 24)
    random = np.random.default_rng(1)
    order = np.stack([random.permutation(24) - 16 for _ in ids]).clip(0).astype(np.int32)
    seen_from = np.maximum(order, 1)[:, :, None]  # What is of rank 0 sees its like.
    types = np.sort(random.integers(2, size=ids.shape), axis=1)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor(ids),
            perm_mask=torch.tensor((order[:, None] >= seen_from).astype(np.float32)),
            target_mapping=torch.eye(24).expand(3, -1, -1),
            token_type_ids=torch.tensor(types),
        )
    said = ours.run.steps.model.apply(
        {'params': ours.params}, ids, order=order, token_types=types.astype(np.int32)
    )
    close(said['tokens'], out.logits, order > 0)


def test_a_decoder_with_the_positions_of_xlnet_agrees(imported):
    theirs, ours, _ = imported('xlnet')
    config = transformers.XLNetConfig(**theirs.config.to_dict() | {'attn_type': 'uni'})
    left = transformers.XLNetModel(config).eval()
    left.load_state_dict(theirs.transformer.state_dict())
    ids, _ = references.tokens(3, 24)
    types = (np.arange(24) > 10).astype(np.int32)[None].repeat(3, 0)
    with torch.no_grad():
        out = left(input_ids=torch.tensor(ids), token_type_ids=torch.tensor(types))
    model = dataclasses.replace(
        ours.run.config.model, architecture='decoder', attention=('causal',)
    )
    params = {key: value for key, value in ours.params.items() if key in ('embed', 'layers')}
    decoder = Decoder(model, references.V, 24)
    mine = decoder.apply({'params': params}, ids, token_types=types, method='hidden')
    close(mine, out.last_hidden_state)


def test_the_published_sizes_are_theirs():
    """Of the configs that say so."""
    sizes = {'vocab_size': 32_000, 'd_model': 768, 'n_layer': 12, 'n_head': 12, 'd_inner': 3072}
    with torch.device('meta'):
        model = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**sizes))
    assert sum(weight.numel() for weight in model.transformer.parameters()) == 116_718_336
    assert sum(weight.numel() for weight in model.parameters()) == 116_718_336 + 32_000


@pytest.mark.parametrize('name', references.BOTH)
def test_encoder_decoders_agree(imported, name):
    theirs, ours, _ = imported(name)
    (sources, there), (targets, _) = references.tokens(3, 24), references.tokens(3, 11, seed=1)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor(sources),
            attention_mask=torch.tensor(there),
            decoder_input_ids=torch.tensor(targets),
            output_hidden_states=True,
        )
    logits, kept = ours.run.steps.model.apply(
        {'params': ours.params},
        targets,
        encoder_inputs=sources,
        encoder_segment_ids=there,
        mutable=['intermediates'],
    )
    close(logits, out.logits)
    kept = kept['intermediates']
    for mine, other in zip(
        layers(kept['encoder'])[:-1], out.encoder_hidden_states[1:-1], strict=True
    ):
        close(mine, other, there > 0)
    for mine, other in zip(
        layers(kept['decoder'])[:-1], out.decoder_hidden_states[1:-1], strict=True
    ):
        close(mine, other)


@pytest.mark.parametrize('name', [*references.DECODERS, *references.BOTH])
def test_greedy_generation_gives_the_same_tokens(imported, name):
    theirs, ours, _ = imported(name)
    ids, _ = references.tokens(4, 20)
    lengths = np.array([20, 3, 11, 7])
    padded = np.where(np.arange(20) < lengths[:, None], ids, 0)
    model, sources = ours.run.steps.model, None
    if name in references.BOTH:
        given, there = padded, np.arange(20) < lengths[:, None]
        begin = theirs.config.decoder_start_token_id
        sources = (padded, lengths)
        padded, lengths = np.full((4, 1), begin), np.ones(4, int)
    else:  # They want the padding first.
        given = np.stack([np.roll(row, 20 - n) for row, n in zip(padded, lengths, strict=True)])
        there = np.arange(20) >= 20 - lengths[:, None]
    with torch.no_grad():
        made = theirs.generate(
            torch.tensor(given),
            attention_mask=torch.tensor(there.astype(int)),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        ).numpy()[:, -64:]
    found, counts = decode.generate(
        model,
        ours.params,
        padded,
        lengths,
        jax.random.key(0),
        max_tokens=64,
        sampling=decode.Sampling(temperature=0.0),
        stop=(),
        sources=sources,
    )
    assert counts.tolist() == [64] * 4
    np.testing.assert_array_equal(np.asarray(found)[:, :64], made)


@pytest.mark.parametrize('name', references.CASES)
def test_an_export_has_the_same_bits_and_loads_there(imported, name, tmp_path):
    theirs, ours, folder = imported(name)
    family = pretrained.save(ours, tmp_path / 'out', family=theirs.config.model_type)
    before = safetensors.numpy.load_file(folder / 'model.safetensors')
    after = safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')
    assert family.name == theirs.config.model_type
    assert set(before) == set(after)
    for tensor, value in before.items():
        np.testing.assert_array_equal(after[tensor], value)
    again = type(theirs).from_pretrained(tmp_path / 'out').eval()
    first, second = (
        {key: value for key, value in model.config.to_dict().items() if not key.startswith('_')}
        for model in (theirs, again)
    )
    # The tokenizer decides ids; a list of windows says more than a number.
    told = {*pretrained.family.COMMON, 'max_window_layers'}
    first['activation_function'] = {'swish': 'silu'}.get(*[first.get('activation_function')] * 2)
    wrong = {
        key: (value, second.get(key))
        for key, value in first.items()
        if key not in told and value is not None and value != second.get(key)
    }
    assert wrong == {}
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)


def test_shards_and_other_precisions(tmp_path):
    references.write('llama 3', tmp_path / 'many', max_shard_size='20KB')
    assert len(list((tmp_path / 'many').glob('*.safetensors'))) > 2
    ours = pretrained.from_pretrained(tmp_path / 'many')
    ids, _ = references.tokens(2, 9)
    with torch.no_grad():
        close(ours.logits(ids), references.reference('llama 3')(torch.tensor(ids)).logits)
    pretrained.save(ours, tmp_path / 'half', dtype='bfloat16')
    kept = pretrained.from_pretrained(tmp_path / 'half', dtype='keep')
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kept.params)} == {'bfloat16'}
    wide = pretrained.from_pretrained(tmp_path / 'half')
    pretrained.save(wide, tmp_path / 'again', dtype='bfloat16')
    first, second = ((tmp_path / n / 'model.safetensors').read_bytes() for n in ('half', 'again'))
    assert first == second
    assert json.loads((tmp_path / 'half' / 'config.json').read_text())['dtype'] == 'bfloat16'
