"""Every key of a config, with its type, unit and reason. The other configs state what differs.

A config file defines `get_config()`, which starts from `base.get_config()`. Values are plain (names
and numbers, never callables), so that every key can be overridden on the command line
(`--config.model.num_layers=8`), logged, and compared between runs. A key or type that is not listed
here stops the program at once.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults: a small decoder that trains on any machine."""
    config = ConfigDict()

    # int. The one number behind initial weights, data order, dropout and sampling.
    config.seed = 0

    # Where text comes from, and how it becomes batches.
    config.data = ConfigDict(
        {
            # str. Sources, `KIND:WHERE[#FIELD][SLICE]`:
            #   builtin:pydocs                prose and docstrings of Python's standard library
            #   text:GLOB                     plain text, .gz, .xz and .zst too; a document is what
            #                                 `document` says, or a line, a paragraph: lines:, paragraphs:
            #   jsonl:GLOB#FIELD              one JSON object a line
            #   parquet:GLOB#FIELD            a column
            #   warc:GLOB                     web archives; HTML as it is
            #   corpus:FOLDER                 what `python -m lm.corpus` made; [train], [valid], [test]
            #   tfds:NAME[/CONFIG]#FIELD      a prepared TensorFlow Datasets data set
            #   data:NAME/FILE                a file below $LM_DATA_DIR (text, or as its name says: .jsonl
            #                                 with #FIELD, .tsv, .csv, FILE.{en,de} or FILE,FILE)
            # and of pairs, the side given and the side to predict:
            #   builtin:numerals#en,de        numbers written out; two of en, de, fr, zh
            #   parallel:PATH.{en,de}         two files, line by line, .gz and .xz too; or FILE,FILE
            #   tsv:GLOB#0,1  csv:GLOB#0,1    columns, by number, or by name: #en,de (then the first
            #                                 line gives the names)
            #   jsonl:GLOB#A,B                two fields
            #   tfds:NAME[/CONFIG]#en,de      two fields
            # Of a knowledge graph, HEAD, RELATION and TAIL between tabs; id2name.tsv beside names the ids:
            #   triples:GLOB                  as sentences, two of each: who relates to what, and back
            #   triples:GLOB#question,answer  as pairs
            #   data:NAME/FILE#triples        the same below $LM_DATA_DIR; also with #question,answer
            # Of records (tsv, csv, jsonl) also with a label: #FIELD=LABEL, #A,B=LABEL; and two fields as
            # one text: #A+B,C.
            # Braces at the end of a FIELD say which control codes (`tokenizer.codes`) texts have:
            # #text{genre,title} as these fields of each record hold, #{=news} all the same.
            # A SLICE in brackets keeps a part: a named split [train] for `builtin:` and `tfds:`;
            # [START:STOP] in documents, or with a unit in percent of the characters (%), characters
            # (c) or words (w): [:90%], [800000w:1000000w]. Of pairs, in pairs or percent of them.
            # Several are joined by ' + ': `tsv:a.tsv + tsv:b.tsv`. One that is named twice counts twice.
            'train': 'builtin:pydocs[train]',  # str. '' where there are corpora.
            # dict. Several sources for one stream, in its place: by name the source, and how much of it,
            #   ConfigDict({'web': {'source': 'jsonl:web/*.jsonl', 'weight': 3.0}, 'wiki': {'source': ...}})
            # `weight` is 1 where none is given, and `final_weight` that of the last step (only rates =
            # scheduled reads it). With `epochs` a corpus is left out once all its rows were seen so often
            # (0.5: half of them were seen), and the others share what it had. Each batch has rows of all.
            'corpora': ConfigDict(),
            # str. What part of the rows a corpus is: its weight (fixed), times
            #   proportional    its rows: all corpora are seen equally often
            #   temperature     rows^(1 / temperature), as in multilingual BERT and mT5
            #   scheduled       nothing, but the weights go to `final_weight` over the steps
            'rates': 'fixed',
            'rates_temperature': 2.0,  # float.
            'rates_limit': 0,  # int, rows. The most that counts of a corpus (T5's K). 0 = no limit.
            'valid': 'builtin:pydocs[valid]',  # str. '' = no validation.
            'test': 'builtin:pydocs[test]',  # str. '' = no test split.
            # str. Stands before the source of each pair, and tells a model of several tasks what to
            # do (T5): 'translate English to German: ', with the space.
            'prefix': '',
            # str: file | paragraph | line. What one document is in plain text. No token attends to
            # another document.
            'document': 'file',
            'length': 256,  # int, tokens. T, the context: targets in one row of a batch.
            'source_length': 0,  # int, tokens. S, of the sources of an encoder_decoder. 0 = length.
            'batch_size': 16,  # int, rows. B, over all devices and hosts.
            # bool. Several documents in a row (kept apart by segment ids), or one row each.
            'packing': True,
            # bool. Windows of a long document begin anywhere, differently in each epoch (as in
            # nanoGPT), instead of at multiples of `length`. Evaluation never does this.
            'random_crop': False,
            # float, rate. So many windows are read without their codes (`tokenizer.codes`), so that the
            # model also knows text as such, which guidance needs. Evaluation never leaves them out.
            'code_dropout': 0.0,
            # tuple of str, done in turn, to training text only and anew each time that it is read: NAME
            # RATE, of replace | replace_unigram | replace_nearest | drop | insert | delete | swap |
            # shuffle | permute (sentences) | rotate | bpe_dropout, or 'subword RATE ALPHA':
            # ('swap 0.1', 'insert 0.05'). lm/data/augment.py shows each. Of seq2seq sources only.
            'augment': (),
            # str, path of an .npy file, float [ids, width]: what `replace_nearest` compares, such as the
            # embeddings that a run with the same tokenizer has learnt.
            'augment_embedding': '',
            'tfds_dir': '',  # str, path. Where TFDS data sets are prepared. '' = TFDS's default.
            # str, path. Tokenized text is kept here, by content. '' = $LM_CACHE_DIR, or ~/.cache/lm.
            'cache_dir': '',
            'workers': 0,  # int, threads that tokenize. 0 = one a core.
            'prefetch': 2,  # int, batches put on the device ahead of the step.
        }
    )

    # How text becomes tokens. Trained on the training source when no path is given.
    config.tokenizer = ConfigDict(
        {
            # str: unigram | bpe (both by sentencepiece) | words | bytes | chars; or huggingface, with a
            # path.
            'kind': 'unigram',
            # str, path of one to use as it is, with its own ids: a sentencepiece .model, a tokenizer.json,
            # or the folder of a published model (Hugging Face). '' = train one.
            'path': '',
            'vocab_size': 4096,  # int, ids. Only read when unigram, bpe or words is trained.
            # bool. Characters outside the vocabulary become bytes, so that nothing is unknown.
            'byte_fallback': True,
            # int, bytes. These three are trained on at most so much, lines spread over the training text.
            'train_bytes': 20_000_000,
            # tuple of str, without white space: texts that are one token each, wherever they stand, such
            # as tags: ('<BT>',). Only read when these three are trained.
            'symbols': (),
            # Ids for objectives that hide text: those of a tokenizer that has them, and else ids after
            # its own, by which the model's vocabulary grows.
            'mask': False,  # bool. A mask token, as in BERT, BART and ELECTRA.
            # int. Tokens that stand for spans, as in T5, which has 100. 0 = all that the tokenizer has.
            'sentinels': 0,
            # tuple of str. Control codes (CTRL): tokens that say before a text what it is. A source
            # says which its documents have, in braces. 'news' is a code, 'title=' one with text, and
            # 'words<100', 'words>=100' (or characters) are given by length, with no source saying so.
            'codes': (),
            # bool. What the tokenizer of `path` puts before a text stands before the sources of seq2seq, as
            # with BART's <s>; so in imported models.
            'begin_sources': False,
        }
    )

    # What is learnt from text. Which keys are read depends on `name`; lm/objectives/ shows each.
    config.objective = ConfigDict(
        {
            # str: causal (GPT) | prefix, of a decoder; masked (BERT) | permutation (XLNet) | replaced
            # (ELECTRA) | classification | similarity | contrastive, of an encoder; span_corruption
            # (T5) | ul2 | denoising (BART) | seq2seq, of an encoder_decoder.
            'name': 'causal',
            # float, rate. The part of a text that is hidden: BERT and T5 0.15, BART 0.3. ul2 reads
            # `denoisers` and permutation `partial` instead.
            'rate': 0.15,
            # float, tokens. The mean length of a hidden span: T5 3, BART 3 (Poisson); of `masked` with
            # unit `span` before `max_span` cuts it: SpanBERT 5 (geometric, then 3.8).
            'span': 3.0,
            # int, tokens. The longest span of masked (SpanBERT 10) and of permutation (XLNet 5).
            'max_span': 10,
            # str: token | word (whole words) | span. What `masked` and `replaced` hide together.
            'unit': 'token',
            # int, tokens. The most that `masked` and `replaced` hide in a window. 0 = no limit.
            'max_predictions': 0,
            # float, rates. Of the tokens that `masked` hides, the part that becomes a random token,
            'random_rate': 0.1,
            'keep_rate': 0.1,  # float. and the part that stays as it is.
            # str: next (BERT) | order (ALBERT) | '' = one text. `masked` sees two texts, and also
            # tells whether the second follows the first (else it is of another document, where there are
            # several), or in which order they stood.
            'pairs': '',
            # tuple of str, done in turn: mask | delete | infill | permute (sentences) | rotate. What
            # `denoising` does to a text; BART's best.
            'noise': ('permute', 'infill'),
            # tuple of str: what `ul2` draws from, evenly: `R` or `X` with mean span and rate, `S` with
            # rate. One that is named twice is drawn twice as often.
            'denoisers': (
                *('R 3 0.15', 'R 8 0.15', 'S 0.25'),
                *('X 3 0.5', 'X 8 0.5', 'X 64 0.15', 'X 64 0.5'),
            ),
            # int. `permutation` predicts one token in so many.
            'partial': 6,
            'bidirectional': False,  # bool. `permutation` reads half of the windows backwards.
            # float. Of `replaced`: how wide the generator is, as a part of the model's heads and MLP (0:
            # there is none, tokens are replaced by random ones),
            'generator_size': 0.25,
            'discriminator_weight': 50.0,  # float. and what its loss counts beside the generator's.
            # tuple of str. The labels that `classification` chooses from, as the source writes them.
            'classes': ('0', '1'),
            # float. What `contrastive` divides cosines by: SimCSE 0.05.
            'similarity_temperature': 0.05,
        }
    )

    # dict. Several tasks for one model: by name what differs from `data`, `objective` and `generate`, and a
    # weight (1 where none is given),
    #   config.tasks.rte = ConfigDict({'weight': 0.5, 'data': {'train': ...}, 'objective': {'name': ...}})
    # `final_weight` is that of the last step; only rates = scheduled read it. Empty: one task, as above.
    #
    # The validation loss (`valid/loss`), which is lowest at `best`, is then the mean of the tasks' own,
    # weighted by `weight` (scheduled: by the mean of the first and the last); other rates and the mode do
    # not matter. Each counts in its own unit: nats a token or a text, or a squared error; that of a pair's
    # label is left out. So are tasks without `data.valid`; where those that have it have no weight, they
    # count evenly.
    config.tasks = ConfigDict()
    config.multitask = ConfigDict(
        {
            # str: alternating (each step is of one task, drawn by its rate) | joint (each step is of all,
            # and the loss is their mean weighted by the rates).
            'mode': 'alternating',
            # str. Rates are the tasks' weights (fixed), times
            #   proportional    the rows of the task's training source
            #   temperature     rows^(1 / temperature), as in multilingual BERT and mT5
            #   scheduled       nothing, but the weights go to `final_weight` over the steps
            #   progress        how much of the task's first loss is left (slow learners get more)
            #   gradient_norm   that, divided by the norm of the task's gradient (GradNorm)
            #   uncertainty     1 / loss: the best weight for noise of that size (Kendall et al. 2018)
            'rates': 'fixed',
            'temperature': 2.0,  # float.
            'limit': 0,  # int, rows. The most that counts of a source (T5's K). 0 = no limit.
            # int, steps. The last three are measured and set anew so often.
            # Before the second time they are the weights; and a tenth of the steps is always shared evenly.
            'every': 20,
            # float. The power that the loss which is left is taken to (GradNorm's alpha).
            'asymmetry': 1.5,
        }
    )

    # The Transformer. B batch, T length, D embed_dim, H heads, G kv heads, K head_dim, F mlp_dim.
    config.model = ConfigDict(
        {
            # str: decoder (GPT) | encoder (BERT) | encoder_decoder (T5, translation).
            'architecture': 'decoder',
            'num_layers': 6,  # int. N.
            'encoder_layers': 0,  # int. Of an encoder_decoder: 0 = num_layers.
            'embed_dim': 256,  # int. D.
            # int. The width of embeddings, which a matrix then takes to D, and in a decoder another one
            # back (ALBERT; OPT-350M). 0 = D.
            'embedding_dim': 0,
            'num_heads': 4,  # int. H.
            # int. G: 0 = num_heads (multi-head); 1 = multi-query; between = grouped-query.
            'num_kv_heads': 0,
            'head_dim': 0,  # int. K: 0 = embed_dim / num_heads.
            'mlp_dim': 0,  # int. F: 0 = 4 D; 8/3 D, rounded up to 64, for the gated activations.
            # int. E: so many MLPs in the place of one, of which each token goes through some (a mixture of
            # experts). 0 = one MLP for all.
            'experts': 0,
            'experts_per_token': 2,  # int. k. Switch has 1, Mixtral 2.
            # int. The last of so many layers has experts: 1 = all, 2 = every other one (GShard).
            'expert_every': 1,
            # str: softmax (weights are probabilities of all experts: Switch) | softmax_top_k (of the k
            # chosen: Mixtral) | expert_choice (experts choose tokens, also by later ones: for encoders).
            'router': 'softmax_top_k',
            # str: dropless | capacity. With a capacity an expert takes at most capacity_factor k T / E
            # tokens of a row in training; others pass by.
            'expert_dispatch': 'dropless',
            'capacity_factor': 1.25,  # float.
            # float. Weight of the loss of each layer that keeps the loads of experts even (Switch). With
            # one expert a token, 0.1 was needed for that (experiments/moe).
            'balance_loss': 0.01,
            'router_z_loss': 1e-3,  # float. The same of log(Z)^2 of the router's logits (ST-MoE).
            # str: gelu (the tanh form) | gelu_exact (with erf) | relu | silu | swiglu | geglu (the last two
            # are gated).
            'activation': 'gelu',
            'norm': 'rmsnorm',  # str: rmsnorm | rmsnorm_1p (keeps its scale less 1: Gemma) | layernorm.
            # float. Added to the variance, of heads' norms too. 0 = 1e-6 for RMSNorm, 1e-5 for LayerNorm.
            'norm_epsilon': 0.0,
            # str: pre (stable) | post (as in the 2017 paper) | both (before and after, Gemma 2).
            'norm_placement': 'pre',
            # bool. Attention and MLP read the same vectors, each through its norm (GPT-NeoX).
            'parallel_residual': False,
            # str: rotary | learned | sinusoidal | alibi | relative (T5) | transformer_xl (XLNet; attention
            # then has vectors of its own in place of biases) | none.
            'position': 'rotary',
            # int. Of `learned`: the row of the table that the first place has (OPT and BART: 2).
            'position_offset': 0,
            'rotary_base': 10_000.0,  # float. The longest wavelength is 2 pi times this.
            'rotary_fraction': 1.0,  # float. The part of a head that is turned (GPT-NeoX: 1/4).
            # str: none | linear | ntk | llama3 | yarn. Stretches rotary positions to longer contexts.
            'rotary_scaling': 'none',
            'rotary_factor': 1.0,  # float. By how much the context is stretched.
            'rotary_original_length': 0,  # int, tokens. The context before stretching. llama3, yarn.
            # int. Of `relative` (T5): the distances that a learned bias is kept for,
            'relative_buckets': 32,
            'relative_distance': 128,  # int, tokens. and from where on all share the last.
            # int. Kinds of tokens with a vector each, as BERT's of the first and the second text; with
            # transformer_xl there are two vectors, for pairs of one kind and for others. 0 = off.
            'token_types': 0,
            # float. Embeddings of tokens are multiplied by it (Gemma: the root of D).
            'embed_scale': 1.0,
            'embed_norm': False,  # bool. A norm on the embeddings (BERT).
            # tuple of str, cycled over the layers: who sees whom. Masks are combined with & | ~:
            # causal | full | window(w) | strided(s) | global_tokens(n) | random_blocks(n, seed) | ...,
            # and presets such as gpt3 or bigbird; other kinds stand alone: topk | nsa | linear |
            # performer | gated_linear | gated_delta. README.md lists them.
            'attention': ('causal',),
            # tuple of str. The same for the encoder of an encoder_decoder.
            'encoder_attention': ('full',),
            # str: auto | xla | blocked | sparse | cudnn | splash | hopper. What computes masks:
            # `lm.attention.explain` says what auto is, and why.
            'attention_implementation': 'auto',
            'qk_norm': False,  # bool. RMSNorm on queries and keys (ViT-22B): larger steps stay stable.
            # float. Products of queries and keys are multiplied by it (T5: 1). 0 = 1 / sqrt(K).
            'attention_scale': 0.0,
            'attention_softcap': 0.0,  # float. logits <- c tanh(logits / c) (Gemma 2). 0 = off.
            'logit_scale': 1.0,  # float. What the logits are computed from is multiplied by it (T5).
            'logit_softcap': 0.0,  # float. The same on the output logits. 0 = off.
            'logit_bias': False,  # bool. Of a decoder, a number added to each token's logit (BART).
            'bias': False,  # bool. Biases in dense layers and LayerNorm.
            'qkv_bias': False,  # bool. Queries, keys and values have biases anyway (Qwen2).
            'tie_embeddings': True,  # bool. The output matrix is the embedding, transposed.
            'dropout': 0.0,  # float, rate. On embeddings and on the output of each sublayer.
            # int. V, the rows of the embedding; some may never be used. 0 = the ids that there are.
            'vocab_size': 0,
            # int. The vocabulary is padded to a multiple of this, so that a mesh can divide it.
            'vocab_multiple': 1,
            'share_layers': False,  # bool. All layers have the same parameters (ALBERT).
            # bool. One compiled layer in a loop (compiles in seconds at any depth), or N copies.
            # The parameters and results are the same.
            'scan_layers': True,
            # Of config.mesh.stage > 1 (lm/models/pipeline.py draws it). They move the work and not the
            # result, but for dropout's random numbers.
            # int. M: rows go through the stages in so many equal parts. 0 = as many as stages; with more of
            # them the stages are idle for less of the time.
            'pipeline_microbatches': 0,
            # int. R: pieces of the layers a stage; rows go round so many times. Less is idle, and R times
            # as much is sent. Above 1 the stages must divide M.
            'pipeline_repeats': 1,
            # str: none | dots | full. What the backward pass recomputes instead of keeping: nothing;
            # all but the products of dense layers (those of attention itself and of experts are made
            # again); everything. Less memory, more time.
            'remat': 'none',
            # str: float32 | bfloat16 | float16 (with a loss scale: see `optimizer`). Computation;
            # parameters stay float32.
            'dtype': 'float32',
            # str: same | int8 | int8_forward | fp8. What the layers' dense products are rounded to
            # before, in training: same is `dtype`. lm/layers/products.py says which products, and how.
            'matmul': 'same',
        }
    )

    # The loss, in nats a token.
    config.loss = ConfigDict(
        {
            'label_smoothing': 0.0,  # float. Probability spread over the vocabulary.
            'z_loss': 0.0,  # float. Weight of log(Z)^2, which keeps logits from drifting (PaLM: 1e-4).
            # int, MB. The largest float32 logits buffer that a device may hold; above it the loss is
            # computed in pieces.
            'max_logits_mb': 256,
        }
    )

    config.optimizer = ConfigDict(
        {
            # str: adamw | adafactor | lion | muon | sgd, or any factory in optax or optax.contrib.
            'name': 'adamw',
            'learning_rate': 1e-3,  # float. The peak; see `schedule`.
            'b1': 0.9,  # float. Decay of the first moment; the momentum of sgd and muon.
            'b2': 0.95,  # float. Decay of the second moment.
            'eps': 1e-8,  # float. Added to the root of the second moment.
            'weight_decay': 0.1,  # float. Decoupled: times the learning rate, a step.
            # str, regular expression over parameter paths that weight decay applies to. Paths look
            # like `layers/attention/query/kernel`.
            'decay_paths': r'kernel$|embedding$',
            # dict. Further arguments of the optax factory, by name; set in a config file.
            'options': ConfigDict(),
            'clip_norm': 1.0,  # float. The gradient's global norm is cut to this. 0 = off.
            'accumulation': 1,  # int. Each batch goes through the model in so many equal parts.
            'ema_decay': 0.0,  # float. Average of the weights, evaluated in their place. 0 = off.
            # float. In float16 the loss is multiplied by it, or small gradients would be 0. It is halved
            # where a gradient overflows (that step is skipped), down to 1,
            'loss_scale': 65536.0,
            'loss_scale_steps': 1000,  # int, steps. and doubled after so many without an overflow.
        }
    )

    # The learning rate over steps: linear warm-up, then the kind's own decay to `final_scale`.
    config.schedule = ConfigDict(
        {
            # str: cosine | linear | inverse_sqrt | exponential | polynomial | wsd | constant.
            'kind': 'cosine',
            'warmup_steps': 100,  # int, steps.
            'final_scale': 0.1,  # float. The last learning rate, as a part of the peak.
            'power': 2.0,  # float. Of `polynomial`.
            'decay_fraction': 0.2,  # float. Of `wsd` (warm-up-stable-decay): the part that decays.
        }
    )

    # The device mesh. One of them may be -1: all devices that are left.
    config.mesh = ConfigDict(
        {
            'data': -1,  # int. Copies of the model, each with rows of its own.
            'fsdp': 1,  # int. As `data`, with parameters and optimizer state sharded too.
            'tensor': 1,  # int. Heads, MLP width and vocabulary are split.
            'sequence': 1,  # int. Positions are split.
            'expert': 1,  # int. As `data`, with each layer's experts split (config.model.experts).
            'stage': 1,  # int. Layers are split: a pipeline.
            # int. Parts of the devices with a slower network between them: of a TPU pod, slices. 0 = as
            # the devices say.
            'slices': 0,
            # str: data | stage | fsdp. The axis that joins them; all others stay inside of one. '' = the
            # first that they divide.
            'across': '',
        }
    )

    config.train = ConfigDict(
        {
            'steps': 1000,  # int, optimizer steps.
            'log_every': 10,  # int, steps between metric lines.
            'eval_every': 250,  # int, steps between evaluations of `data.valid`. 0 = only at the end.
            # int. A step whose gradient is not finite is skipped; so many in a row stop the run.
            'max_bad_steps': 10,
        }
    )

    config.eval = ConfigDict(
        {
            'batch_size': 0,  # int, rows. 0 = data.batch_size / accumulation.
            # int, tokens. Sliding windows: each scores only its last `stride` tokens, given all
            # before them. 0 = windows side by side. Smaller is slower and more exact.
            'stride': 0,
            # int, batches in an evaluation during training. 0 = the whole split. The evaluation at
            # the end is always of whole splits.
            'batches': 0,
            # str: latest | best (lowest validation loss; that of several tasks: see `tasks`) | average:N
            # (the mean of the parameters of the latest N, which `checkpoint.keep` must keep; Vaswani et al.
            # 2017 take 5). What is evaluated at the end, and loaded where nothing else is asked for.
            'checkpoint': 'latest',
            # Translations (objective seq2seq) are made greedily and by beam search, and measured by
            # sacreBLEU, at the end.
            'beams': 4,  # int. Texts that beam search keeps. 0 = greedy only.
            'length_penalty': 0.6,  # float. Larger prefers longer texts; 0 = log probability.
            'bleu_tokenizer': '13a',  # str: sacreBLEU's 13a | zh | ja-mecab | ko-mecab | intl | char ...
            'lowercase': False,  # bool. BLEU and chrF of lowercased text.
            # int. Of triples (objectives causal and seq2seq) each end is ranked among the graph's
            # entities; of a graph with more, among so many random ones, which the result's name says.
            # 0 = always all.
            'candidates': 1000,
        }
    )

    config.checkpoint = ConfigDict(
        {
            'every': 250,  # int, steps. 0 = only at the end.
            'keep': 2,  # int. The latest so many are kept,
            'keep_best': 1,  # int. and the best so many by validation loss.
        }
    )

    # Samples in the report and `--mode=generate`.
    config.generate = ConfigDict(
        {
            'prompts': ('The ',),  # tuple of str. '' = from nothing.
            'samples': 2,  # int, continuations of each prompt.
            # bool. BOS stands before what a decoder goes on with, as before documents in training.
            # Imported models have it as their tokenizers do: GPT-2's begin with the text.
            'bos': True,
            'max_tokens': 128,  # int, tokens.
            'temperature': 0.8,  # float. 0 = greedy.
            'top_k': 0,  # int. Only the k likeliest tokens. 0 = off.
            'top_p': 1.0,  # float. Only the likeliest tokens of this total probability. 1 = off.
            'min_p': 0.0,  # float. Only tokens with this part of the best's probability. 0 = off.
            # tuple of str. What the text is to be, of `tokenizer.codes`: 'news', 'title=The cat'.
            'codes': (),
            # float. Classifier-free guidance: logits = without codes + guidance (with - without). 1 =
            # with codes, 0 = without; above 1 they count for more. Needs `data.code_dropout`.
            'guidance': 1.0,
        }
    )

    config.log = ConfigDict(
        {
            'tensorboard': True,  # bool. Event files in the workdir.
            'wandb': '',  # str. A project of Weights & Biases, if `wandb` is installed. '' = off.
            # tuple of int, steps. The first and the last to trace with jax.profiler, into the workdir's
            # `profile`: (10, 13) are four steps, compiled by then. () = off.
            'profile': (),
            # bool. Every host traces, and not the first alone: to find the one that others wait for. The
            # report's table is of one of them, which it names.
            'profile_all_hosts': False,
        }
    )
    return config
