"""Files for llama.cpp: what it computes from them, where it is installed, and what stands in them."""

import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers as tokenizers_library

import lm
from lm import pretrained
from lm.config import parse
from lm.errors import InputError
from lm.pretrained import tokenizers
from lm.tokenizer import Bytes

references = pytest.importorskip('references', reason="needs pip install '.[reference]'")
gguf = pytest.importorskip('gguf', reason="needs pip install '.[gguf]'")
import torch  # noqa: E402
import transformers  # noqa: E402

pytestmark = pytest.mark.reference

V = 264
CASES = (
    *('gpt2', 'gpt2 untied', 'llama 2', 'llama, linear scaling', 'llama 3.2 without scaling'),
    *('llama 3', 'llama 3.2', 'llama, yarn', 'mistral without a window', 'qwen2', 'qwen2, yarn'),
    *('qwen3', 'gemma 2', 'gpt-neox', 'pythia, in sequence'),
)
_YARN = {
    **{'rope_type': 'yarn', 'rope_theta': 10_000.0, 'factor': 4.0},
    'original_max_position_embeddings': 16,
}
MORE = {
    'llama, yarn': ('llama 2', {'rope_parameters': _YARN}),
    'qwen2, yarn': ('qwen2', {'rope_parameters': _YARN}),
    'gpt2 untied': ('gpt2', {'tie_word_embeddings': False, 'n_inner': 48}),
    'llama 3.2 without scaling': ('llama 3.2', {'rope_parameters': None}),
    'gemma 2': ('gemma 2', {'query_pre_attn_scalar': 16}),
}
TEXT = 'Return a list: né 中, or\n  None'


def write(name, folder, size=V):
    """Writes a model with random weights and our tokenizer of bytes; returns what `transformers` has."""
    base, more = MORE.get(name, (name, {}))
    kind, options = references.CASES[base]
    made = getattr(transformers, kind)
    torch.manual_seed(0)
    options = options | more
    if options.get('rope_parameters', 0) is None:
        del options['rope_parameters']
    model = made(made.config_class(**options | {'vocab_size': size})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    config = parse(lm.get_config('base', tokenizer={'kind': 'bytes'}))
    tokenizers.save_pretrained(Bytes(), config, folder)
    return model


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """Returns theirs, ours and the file."""
    theirs = write(request.param, tmp_path / 'model')
    ours = pretrained.from_pretrained(tmp_path / 'model')
    pretrained.save_gguf(ours, tmp_path / 'model.gguf')
    return theirs, ours, tmp_path / 'model.gguf'


def test_llama_cpp_computes_the_same(case):
    llama_cpp = pytest.importorskip('llama_cpp', reason='needs llama-cpp-python, built from source')
    theirs, ours, file = case
    there = llama_cpp.Llama(
        str(file), logits_all=True, n_ctx=128, verbose=False, type_k=0, type_v=0
    )
    ids = ours.given(TEXT)
    assert there.tokenize(TEXT.encode(), add_bos=True, special=False) == ids
    assert there.detokenize(ids[1:]).decode() == TEXT
    there.eval(ids)
    with torch.no_grad():
        right = theirs(torch.tensor([ids])).logits[0].numpy()
    found, scale = there.scores[: len(ids)], np.abs(right).max()
    # Its GELU is a table of float16.
    gelu = any(name in type(theirs).__name__ for name in ('GPT2', 'Gemma', 'NeoX'))
    np.testing.assert_allclose(found / scale, right / scale, atol=1e-3 if gelu else 1e-4)
    assert found.argmax(axis=1).tolist() == right.argmax(axis=1).tolist()


def test_every_tensor_is_there_once(case):
    theirs, _, file = case
    reader = gguf.GGUFReader(file)
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert len(found) == len(reader.tensors)
    kinds = {tensor.tensor_type for tensor in found.values()}
    assert kinds == {gguf.GGMLQuantizationType.F32}
    divisors = found.pop('rope_freqs.weight', None)
    scaling = getattr(theirs.config, 'rope_parameters', None) or {}
    assert (divisors is not None) == (scaling.get('rope_type') == 'llama3')
    sizes = sorted(tensor.n_elements for tensor in found.values())
    tensors = dict(theirs.named_parameters())  # Tied ones once.
    assert sizes == sorted(tensor.numel() for tensor in tensors.values())
    total = sum(np.abs(np.asarray(tensor.data, np.float64)).sum() for tensor in found.values())
    if 'Gemma' not in type(theirs).__name__:  # Whose norms have 1 added.
        right = sum(tensor.detach().double().abs().sum().item() for tensor in tensors.values())
        assert total == pytest.approx(right, rel=1e-9)


@pytest.mark.parametrize('name', ['llama 2', 'qwen2'])
def test_transformers_reads_the_same(name, tmp_path):
    """Its reader of such files undoes what llama.cpp has in another order."""
    theirs = write(name, tmp_path / 'model')
    ours = pretrained.from_pretrained(tmp_path / 'model')
    pretrained.save_gguf(ours, tmp_path / 'out/model.gguf')
    again = type(theirs).from_pretrained(tmp_path / 'out', gguf_file='model.gguf')
    ids = torch.arange(40)[None] + 4
    with torch.no_grad():
        np.testing.assert_allclose(again(ids).logits, theirs(ids).logits, atol=1e-5)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_precisions(dtype, tmp_path):
    write('qwen2', tmp_path / 'model')
    ours = pretrained.from_pretrained(tmp_path / 'model')
    pretrained.save_gguf(ours, tmp_path / 'model.gguf', dtype=dtype)
    reader = gguf.GGUFReader(tmp_path / 'model.gguf')
    code = {'float16': 'F16', 'bfloat16': 'BF16'}[dtype]
    for tensor in reader.tensors:
        flat = len(tensor.shape) == 1
        assert tensor.tensor_type.name == ('F32' if flat else code)


def test_what_llama_cpp_has_not_is_named(tmp_path):
    def refused(name, message):
        folder = tmp_path / name.replace(' ', '_')
        write(name, folder)
        ours = pretrained.from_pretrained(folder)
        with pytest.raises(InputError, match=message):
            pretrained.save_gguf(ours, tmp_path / 'model.gguf')
        assert not list(tmp_path.glob('*gguf*'))

    refused('mistral', "llama.cpp's 'llama' has not what this model has: windows")
    refused('opt', "the family = 'opt' is not known")
    (tmp_path / 'mine.gguf').touch()
    write('gpt2', tmp_path / 'there')
    ours = pretrained.from_pretrained(tmp_path / 'there')
    with pytest.raises(InputError, match=r"mine.gguf' exists"):
        pretrained.save_gguf(ours, tmp_path / 'mine.gguf')


@pytest.mark.parametrize('kind', ['bpe', 'unigram', 'bytes'])
def test_texts_have_the_same_ids(kind, tmp_path):
    llama_cpp = pytest.importorskip('llama_cpp', reason='needs llama-cpp-python, built from source')
    config = lm.get_config(
        'quickstart',
        model={'num_layers': 1, 'embed_dim': 32, 'num_heads': 2},
        data={'test': '', 'length': 32, 'batch_size': 8},
        tokenizer={'kind': kind, 'vocab_size': 500},
        train={'steps': 2, 'eval_every': 0},
        schedule={'kind': 'linear', 'warmup_steps': 1},
        eval={'batches': 1},
        checkpoint={'every': 0},
        generate={'prompts': ()},
        log={'tensorboard': False},
    )
    lm.train(config, tmp_path / 'run')
    ours = lm.load(tmp_path / 'run')
    pretrained.save_gguf(ours, tmp_path / 'model.gguf')
    there = llama_cpp.Llama(str(tmp_path / 'model.gguf'), vocab_only=True, verbose=False)
    for text in (
        'Return a list',
        ' two  spaces ',
        'x = 5\n\n    return x',
        'None, or [1, 2].',
        'é',
    ):
        if kind == 'unigram' and not text.isascii():  # It has no bytes as a last resort.
            continue
        assert there.tokenize(text.encode(), add_bos=True, special=False) == ours.given(text)


SAMPLES = (
    *(
        'Return a list',
        ' two  spaces ',
        'x = 5\n\n    return x',
        '12345 + 678',
        "I'LL don't",
        'é 中',
    ),
    'tab\there',
)


def byte_level(pattern='', ignore=False, normalizer=None, spaced=False):
    """A tokenizer of byte-level BPE, trained on this file."""
    made = tokenizers_library.Tokenizer(tokenizers_library.models.BPE(ignore_merges=ignore))
    parts = tokenizers_library.pre_tokenizers
    last = parts.ByteLevel(add_prefix_space=spaced, use_regex=not pattern)
    split = [parts.Split(tokenizers_library.Regex(pattern), 'isolated')] if pattern else []
    made.pre_tokenizer = parts.Sequence([*split, last]) if split else last
    made.normalizer = normalizer
    made.decoder = tokenizers_library.decoders.ByteLevel()
    trainer = tokenizers_library.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=['<|endoftext|>'],
        initial_alphabet=parts.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train([__file__], trainer)
    return made


def saved(made, folder):
    """Returns our model with a tokenizer, and the file."""
    write('llama 2', folder, size=made.get_vocab_size())
    made.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': 'X'}))
    ours = pretrained.from_pretrained(folder)
    pretrained.save_gguf(ours, folder / 'model.gguf')
    return ours, folder / 'model.gguf'


@pytest.mark.parametrize('kind', ['gpt-2', 'llama-bpe', 'qwen2'])
def test_texts_are_cut_as_the_tokenizer_says(kind, tmp_path):
    from lm.pretrained import gguf as ours_gguf

    patterns = {name: pattern for pattern, name in ours_gguf._PATTERNS.items()}
    made = byte_level(patterns.get(kind, ''), ignore=kind == 'llama-bpe')
    ours, file = saved(made, tmp_path)
    field = gguf.GGUFReader(file).fields['tokenizer.ggml.pre']
    assert bytes(field.parts[field.data[0]]).decode() == kind
    llama_cpp = pytest.importorskip('llama_cpp', reason='needs llama-cpp-python, built from source')
    there = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    for text in SAMPLES:
        ids = ours.run.tokenizer.encode(text).tolist()
        assert there.tokenize(text.encode(), add_bos=False, special=False) == ids


def test_tokenizers_that_llama_cpp_reads_otherwise_are_refused(tmp_path):
    lower = tokenizers_library.normalizers.Lowercase()
    others = (
        *(byte_level(spaced=True), byte_level(normalizer=lower), byte_level(ignore=True)),
        byte_level(r'\s+|\w+|[^\s\w]+'),
    )
    for number, made in enumerate(others):
        with pytest.raises(InputError, match="none of llama.cpp's ways"):
            saved(made, tmp_path / str(number))
    texts = ['Return', 'a', 'list', 'of', 'all', 'names', 'in', 'the', 'module', 'or', 'none'] * 20
    for number, (options, message) in enumerate(
        (
            ({'normalization_rule_name': 'nmt_nfkc', 'byte_fallback': True}, 'changes texts'),
            ({'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False}, 'bytes'),
        )
    ):
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=out,
            model_type='bpe',
            vocab_size=300 if 'byte_fallback' in options else 40,
            minloglevel=2,
            **options,
        )
        folder = tmp_path / f's{number}'
        size = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue()).vocab_size()
        write('llama 2', folder, size=size)
        (folder / 'tokenizer.json').unlink()
        (folder / 'tokenizer_config.json').unlink()
        (folder / 'tokenizer.model').write_bytes(out.getvalue())
        ours = pretrained.from_pretrained(folder)
        with pytest.raises(InputError, match=message):
            pretrained.save_gguf(ours, tmp_path / 'model.gguf')


def test_the_command_line(tmp_path):
    from command_line import call

    write('qwen3', tmp_path / 'model')
    call(['--mode=import', f'--from={tmp_path}/model', f'--workdir={tmp_path}/run'])
    options = ['--mode=export', f'--workdir={tmp_path}/run', '--format=gguf']
    done = call([*options, f'--to={tmp_path}/out.gguf'])
    assert (tmp_path / 'out.gguf').is_file(), done
    assert json.loads((tmp_path / 'run/config.json').read_text())
