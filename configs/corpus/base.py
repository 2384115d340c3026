"""Every key of a corpus' config, with its type, unit and reason. The other configs state what differs.

    python -m lm.corpus --config=configs/corpus/pydocs.py

A document goes through the steps in the order of this file; each step counts what it drops and why.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults: careful cleaning that suits prose of any language."""
    config = ConfigDict()

    # tuple of str. Where raw text is, `NAME=KIND:WHERE[#FIELD]`; the name stands in the report, and in each
    # record. Kinds are those of `data.train` in configs/base.py: builtin, text, lines, paragraphs, jsonl,
    # tsv, csv, parquet, warc, corpus, tfds, data. Files may be packed: .gz, .xz, .zst. Fields in braces
    # are kept in the records: `web=jsonl:crawl/*.jsonl.zst#text{url,title}`.
    config.sources = ()
    # str: file | paragraph | line. What one document is in plain text (kind `text`).
    config.document = 'file'
    config.tfds_dir = ''  # str, path. Where TFDS data sets are prepared. '' = TFDS's default.

    # What is done to each document by itself.
    config.clean = ConfigDict(
        {
            # int, characters. Longer documents are dropped before anything else is done to them.
            'max_characters': 10_000_000,
            # float, rate. Documents with more characters that were no UTF-8 (U+FFFD) are dropped; the
            # others lose them.
            'max_invalid': 0.001,
            # str: auto | always | never. The text of HTML without its navigation and markup, by
            # trafilatura. auto: where a document begins with a tag and closes several.
            'extract': 'auto',
            # bool. Mojibake, HTML entities and terminal escapes are repaired, by ftfy.
            'repair': True,
            # str: NFC | NFKC | none. Unicode normalization. NFKC also makes Chinese punctuation narrow.
            'unicode': 'NFC',
            # str: keep | simplified | traditional. Chinese characters, by OpenCC.
            'chinese': 'keep',
            # tuple of str: ISO 639-1 codes of the languages that are kept, by py3langid. () = all.
            'languages': (),
            # float, probability. A language that is less sure is none of them.
            'language_score': 0.3,
            'min_words': 5,  # int, words (in Chinese, characters). Shorter documents are dropped.
            # tuple of str, in turn: gopher_repetition | gopher_quality | c4 | fineweb, as datatrove has
            # them, with thresholds of their own for text without spaces. `c4@web,news`: of these
            # sources only. They are made for prose: code and verse fail most of them. Stop words are
            # asked of English only.
            'filters': ('gopher_repetition', 'gopher_quality'),
            # tuple of str: email | ip | phone. Becomes <EMAIL>, <IP>, <PHONE>.
            'mask': ('email', 'ip', 'phone'),
        }
    )

    # What models trained on the corpus will be evaluated on: documents that hold some of it are dropped.
    config.contamination = ConfigDict(
        {
            # tuple of str, as `sources`: such as 'hellaswag=jsonl:hellaswag/val.jsonl#ctx'.
            'evaluation': (),
            # int, words. What both must have in a row (GPT-3: 13). Shorter texts must occur as a whole,
            'ngram': 13,
            'shortest': 8,  # int, words. down to this length; still shorter ones cannot be looked for.
        }
    )

    # What occurs more than once; the first stays.
    config.duplicates = ConfigDict(
        {
            # tuple of str: document | paragraph | line. What is removed where all of it occurred before.
            'exact': ('document',),
            # int, characters. Shorter paragraphs and lines may repeat.
            'min_characters': 40,
            # int, documents. Lines that stand in so many documents are boilerplate, and leave all of
            # them, the first too. 0 = off.
            'boilerplate': 0,
            # float, similarity. Documents whose sets of shingles have this Jaccard similarity are near
            # duplicates, as estimated by MinHash; numbers count as equal. 0 = off.
            'near': 0.4,
            'shingle': 5,  # int, words. FineWeb: 5.
            # int. Documents are compared where all `rows` hashes of one of the bands agree. More bands find
            # more pairs, more rows find fewer; the report draws the curve. FineWeb: 14 and 8.
            'bands': 40,
            'rows': 3,  # int.
        }
    )

    # Which split a document belongs to follows from its text alone, so that it stays when the corpus grows.
    config.split = ConfigDict(
        {
            'valid': 0.01,  # float, rate.
            'test': 0.01,  # float, rate.
            'salt': '',  # str. Another salt is another split.
        }
    )

    config.output = ConfigDict(
        {
            'format': 'jsonl',  # str: jsonl (packed by zstd) | array_record.
        }
    )

    # A tokenizer trained on the split `train`, with its own report, in the folder `vocabulary`; then
    # `config.tokenizer.path` may name the tokenizer's file there.
    config.vocabulary = ConfigDict(
        {
            'kind': '',  # str: unigram | bpe | words | chars | bytes. '' = none.
            'size': 16_384,  # int, pieces. Only read of unigram, bpe and words.
            'train_bytes': 20_000_000,  # int, bytes. It is trained on so much, spread over the split.
            'symbols': (),  # tuple of str. Texts that are one token each, such as '<BT>'.
        }
    )

    # Where the work is done; the result does not depend on it.
    config.run = ConfigDict(
        {
            'executor': 'local',  # str: local | slurm | ray, by datatrove.
            'tasks': 0,  # int. So many at once. 0 = one a core.
            # float, MB on disk. Files are put together to shards of at least this size; none is cut.
            'shard_mb': 32.0,
            'keep_work': False,  # bool. Keep what was made on the way, in the folder `.work`.
            # dict. Further arguments of datatrove's executor, by name: {'time': '10:00:00', 'partition':
            # 'cpu'} for slurm.
            'options': ConfigDict(),
        }
    )

    config.report = ConfigDict(
        {
            'examples': 3,  # int, documents. Shown of what each step dropped for each reason.
            'pairs': 6,  # int. Pairs of near duplicates shown side by side.
            # str. A field, kept by `sources`, that says what is wrong with documents which were planted to
            # test the corpus' own cleaning; see experiments/corpus. '' = none.
            'planted': '',
        }
    )
    return config
