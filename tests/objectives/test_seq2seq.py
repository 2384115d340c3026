from lm.objectives.seq2seq import seq2seq
from tests.objectives.specs import example, make_spec, plain


def test_seq2seq_by_hand():
    spec = make_spec()
    assert plain(seq2seq(([10, 11], [20, 21, 22]), None, spec)) == example(seq2seq)
    # Stored documents have BOS and EOS around them.
    stored = ([1, 10, 11, 2], [1, 20, 21, 22, 2])
    assert plain(seq2seq(stored, None, spec)) == example(seq2seq)


def test_too_long_ones_lose_their_ends():
    spec = make_spec(length=3, source_length=4)
    fields = seq2seq((range(10, 20), range(20, 30)), None, spec)
    assert plain(fields) == {
        'inputs': [1, 20, 21],
        'targets': [20, 21, 2],
        'loss_weights': [1.0, 1.0, 1.0],
        'encoder_inputs': [10, 11, 12, 2],
    }
