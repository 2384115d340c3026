"""What was trained here has the same loss in `transformers`."""

import functools

import numpy as np
import pytest

import lm
from lm import pretrained

references = pytest.importorskip('references', reason="needs pip install '.[reference]'")
import torch  # noqa: E402
import transformers  # noqa: E402

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures('two_devices', 'no_charts')]

COMMON = {
    'model': {'num_layers': 2, 'embed_dim': 64, 'num_heads': 2, 'dtype': 'float32'},
    'data': {
        'train': 'builtin:pydocs[:40]',
        'valid': 'builtin:pydocs[:4]',
        'test': '',
        'length': 64,
        'source_length': 64,
        'batch_size': 8,
    },
    'tokenizer': {'kind': 'bpe', 'vocab_size': 600},
    'schedule': {'kind': 'linear', 'warmup_steps': 2},
    'optimizer': {'name': 'muon', 'learning_rate': 4e-3, 'accumulation': 1},
    'train': {'steps': 12, 'eval_every': 0},
    'eval': {'batches': 2},
    'checkpoint': {'every': 0},
    'generate': {'max_tokens': 2, 'prompts': ()},
    'log': {'tensorboard': False},
}
CASES = {
    'gpt2': ('gpt2_124m', {}),
    'qwen3': ('quickstart', {}),
    'bert': ('bert_base', {'model': {'mlp_dim': 128}, 'tokenizer': {'mask': True}}),
    'electra': (
        'electra_small',
        {'model': {'mlp_dim': 128, 'embedding_dim': 32}, 'tokenizer': {'mask': True}},
    ),
    'xlnet': ('xlnet_base', {'model': {'mlp_dim': 128}}),
    't5': (
        't5_small',
        {
            'model': {'mlp_dim': 128, 'head_dim': 32},
            'data': {'length': 32},
            'tokenizer': {'sentinels': 20},
        },
    ),
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Returns our model after some steps, and the folder of its export."""

    @functools.cache
    def make(name):
        base, changes = CASES[name]
        overrides = {section: keys | changes.get(section, {}) for section, keys in COMMON.items()}
        workdir = tmp_path_factory.mktemp(name)
        lm.train(lm.get_config(base, **overrides), workdir / 'run')
        family = pretrained.export(workdir / 'run', workdir / 'out')
        assert family.name == name
        return lm.load(workdir / 'run'), workdir / 'out'

    return make


def nats(logits, targets):
    return torch.nn.functional.cross_entropy(
        logits.double().flatten(0, -2), torch.tensor(targets).flatten().long()
    ).item()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['gpt2', 'qwen3'])
def test_a_decoder_has_the_same_perplexity_and_text(name, trained):
    ours, folder = trained(name)
    text = 'Return a list of all the names in the module, or None where it has none.'
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    ids = reader(text, add_special_tokens=False).input_ids
    assert ids == ours.run.tokenizer.encode(text).tolist()
    row = np.array([[theirs.config.bos_token_id, *ids, theirs.config.eos_token_id]])
    with torch.no_grad():
        found = nats(theirs(torch.tensor(row)).logits[:, :-1], row[:, 1:])
    assert found == pytest.approx(ours.perplexity(text)['loss'], rel=1e-4)
    begin = torch.tensor([reader('Return the').input_ids])
    made = theirs.generate(begin, max_new_tokens=30, do_sample=False)[0, begin.shape[1] :]
    expected = ours.generate('Return the', max_tokens=30, temperature=0.0)
    assert reader.decode(made, skip_special_tokens=True) == expected


def test_an_encoder_fills_the_same(trained):
    ours, folder = trained('bert')
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    ids, there = references.tokens(3, 20)
    mine = ours.run.steps.model.apply({'params': ours.params}, ids, segment_ids=there)['tokens']
    with torch.no_grad():
        other = theirs(torch.tensor(ids), attention_mask=torch.tensor(there)).logits
    first, second = nats(torch.tensor(np.asarray(mine)[0]), ids[0]), nats(other[0], ids[0])
    assert first == pytest.approx(second, rel=1e-4)
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    assert reader.mask_token_id == ours.run.tokenizer.vocab_size


def test_a_discriminator_has_the_same_loss(trained):
    """It is what is exported of ELECTRA's two models."""
    ours, folder = trained('electra')
    theirs = transformers.AutoModelForPreTraining.from_pretrained(folder).eval()
    ids, there = references.tokens(3, 20)
    mine = ours.run.steps.model.apply(
        {'params': ours.params},
        ids,
        segment_ids=there,
        part='discriminator',
        method='hidden',
    )
    odds = ours.run.steps.model.apply(
        {'params': ours.params}, mine, 'discriminator', method='predict'
    )
    made_up = torch.tensor(np.arange(20) % 3 == 0).float().expand(3, -1)
    with torch.no_grad():
        out = theirs(
            torch.tensor(ids), attention_mask=torch.tensor(there), labels=made_up.contiguous()
        )
    first = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(np.asarray(odds)), made_up, weight=torch.tensor(there), reduction='sum'
    )
    assert float(first) / there.sum() == pytest.approx(float(out.loss), rel=1e-4)


def test_a_permutation_model_has_the_same_loss(trained):
    ours, folder = trained('xlnet')
    theirs = transformers.XLNetLMHeadModel.from_pretrained(folder).eval()
    ids, _ = references.tokens(3, 20)
    order = np.tile(np.arange(20), (3, 1)).astype(np.int32)
    mine = ours.run.steps.model.apply({'params': ours.params}, ids, order=order)['tokens']
    ranks = torch.tensor(order)
    with torch.no_grad():
        other = theirs(
            torch.tensor(ids),
            perm_mask=(ranks[:, None] >= ranks[:, :, None].clamp(min=1)).float(),
            target_mapping=torch.eye(20).expand(3, -1, -1),
        ).logits
    first = nats(torch.tensor(np.asarray(mine)[:, 1:]), ids[:, 1:])
    assert first == pytest.approx(nats(other[:, 1:], ids[:, 1:]), rel=1e-4)


def test_an_encoder_decoder_has_the_same_loss(trained):
    ours, folder = trained('t5')
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    (sources, there), (targets, _) = references.tokens(3, 24), references.tokens(3, 9, seed=1)
    begin = np.full((3, 1), theirs.config.decoder_start_token_id)
    inputs = np.concatenate([begin, targets[:, :-1]], axis=1)
    mine = ours.run.steps.model.apply(
        {'params': ours.params}, inputs, encoder_inputs=sources, encoder_segment_ids=there
    )
    with torch.no_grad():
        other = theirs(
            input_ids=torch.tensor(sources),
            attention_mask=torch.tensor(there),
            labels=torch.tensor(targets),
        )
    assert nats(torch.tensor(np.asarray(mine)), targets) == pytest.approx(
        float(other.loss), rel=1e-4
    )
