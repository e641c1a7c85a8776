"""All that `from fastai.text.all import *` gives, with this package's classes in place of fastai's, and the names
of this package that users call. Helpers stay importable from their modules."""
import warnings as _warnings

with _warnings.catch_warnings():
    _warnings.filterwarnings('ignore', '`torch.jit', FutureWarning)   # fastai's import uses a deprecated part of torch
    from fastai.text.all import *

from rnn_fastai.core import seeded, flush_denormals
from rnn_fastai.devices import OutOfMemory, check_device, list_devices
from rnn_fastai.data.conll import read_conllu, read_columns
from rnn_fastai.data.texts import read_csv, texts_of
from rnn_fastai.data.sets import (
    number_words, human_numbers, number_runs, human_numbers_100, counting, example_file, fetch_file, imdb, imdb_sample,
    wikitext2, ud_ewt,
)
from rnn_fastai.data.tokenize import WordTokenizer, CorpusTokenizer, TextTokenizer, decode_spec_tokens
from rnn_fastai.data.corpus import Vocab, Corpus
from rnn_fastai.data.subwords import CharTokenizer, ByteLevelTokenizer
from rnn_fastai.data import shards as _shards   # gives Corpus its `build`
from rnn_fastai.data.cache import cache_folder, cached_corpus
from rnn_fastai.data.ppmi import learn_vectors
from rnn_fastai.data.vectors import Vectors, JoinedVocab, join_loaders, read_vectors, word_vectors
from rnn_fastai.data.task import IGNORE, SeqTask
from rnn_fastai.data.ranks import Share
from rnn_fastai.data.lm import LMDataset, LMDataLoader
from rnn_fastai.data.documents import DocDataset, DocDataLoader
from rnn_fastai.data.tags import TAG_IGNORE, TagDataset, TagDataLoader, TagDataLoaders
from rnn_fastai.data.sequences import SeqDataLoader, SeqDataLoaders
from rnn_fastai.data.loaders import TextDataLoaders, text_vocab, label_vocab
from rnn_fastai.data.blocks import Tokenizer, TextBlock
from rnn_fastai.data.balance import class_counts, class_weights, balanced_loaders
from rnn_fastai.data.schemes import (
    Entity, allowed_transitions, check_scheme, convert_tags, entities, entity_f1, entity_scores, find_scheme,
    name_entities,
)
from rnn_fastai.models.dropout import dropout_mask, RNNDropout, WordDropout, drop_weight, zoneout
from rnn_fastai.models.scan import linear_scan
from rnn_fastai.models.cells import (
    cells, Cell, get_cell, check_cell, RNNCell, LSTMCell, GRUCell, PeepholeLSTMCell, LayerNormLSTMCell,
    MogrifierLSTMCell, SLSTMCell, IndRNNCell, SRUCell, LinearCell, MinGRUCell, MinLSTMCell, QRNNCell,
)
from rnn_fastai.models.state import map_state, fit_state, take_rows, put_rows, detach_state, reset_state
from rnn_fastai.models.padding import real_steps, padded_steps, last_steps, reverse_padded, right_padded
from rnn_fastai.models.recurrent import CellTrace, Recurrent
from rnn_fastai.models.losses import (
    AnsweringLoss, linear_cross_entropy, sampled_cross_entropy, OneHotMSE, token_accuracy,
)
from rnn_fastai.models.calibration import (
    Reliability, reliability, expected_calibration_error, brier_score, fit_temperature, best_threshold,
)
from rnn_fastai.models.heads import (
    lm_heads, WordDecoder, LMDecoder, AdaptiveDecoder, MixtureDecoder, pool_states, SigmoidRange, PoolingClassifier,
)
from rnn_fastai.models.awd import (
    archs, awd_lstm_clas_config, awd_lstm_lm_config, AWD_GRU, AWD_QRNN, awd_lstm_lm_split, awd_lstm_clas_split,
    AWD_LSTM, AWD_LSTM_small, awd_arch, LMOutput, LanguageModel, get_language_model, StatefulEncoder,
)
from rnn_fastai.models.seq2seq import (
    Attention, OneHot, JoinedEmbedding, token_input, SequenceModel, StateInput, Seq2Seq,
)
from rnn_fastai.models.documents import (
    DocumentStates, DocumentEncoder, DocumentOutput, TextClassifier, get_text_classifier,
)
from rnn_fastai.models.crf import CRF
from rnn_fastai.models.tagger import CharEncoder, WordEncoder, ArchEncoder, LMStates, Tagger
from rnn_fastai.models.ensemble import ManyNets
from rnn_fastai.generate.sampling import (
    apply_temperature, keep_top_k, keep_top_p, keep_min_p, keep_typical, keep_epsilon, penalize_repetition,
    penalize_counts, forbid, keep_only, blocked_by_ngrams, Sampling, TokenSampler,
)
from rnn_fastai.generate.prepack import prepack, PrepackedModel
from rnn_fastai.generate.adapt import NeuralCache, DynamicEvaluation
from rnn_fastai.generate.decode import evaluating, Continuation, generate
from rnn_fastai.generate.beam import Beam, Hypothesis, beam_search
from rnn_fastai.generate.score import Score, score_ids
from rnn_fastai.generate.texts import Generated
from rnn_fastai.inside.trace import find_layers
from rnn_fastai.inside.recording import Recording
from rnn_fastai.inside.capture import Capture, capture
from rnn_fastai.inside.interventions import (
    Edit, clamp, ablate, patch_states, edit_states, next_token_loss, unit_effects, memory_length, saliency,
)
from rnn_fastai.inside.probes import (
    position_labels, token_labels, bracket_depth, rank_units, Probe, probe, top_contexts, nearest_contexts,
    nearest_states,
)
from rnn_fastai.inside.style import picture_colors, picture_style, save_plot
from rnn_fastai.inside.plots import (
    plot_states, probabilities, plot_states_probs, ColoredText, color_text, gate_saturation, plot_gates, plot_path,
    plot_next, plot_grid, plot_losses, plot_probs, plot_nets,
)
from rnn_fastai.inside.html import write_page
from rnn_fastai.callback.optim import FusedAdam, Adam
from rnn_fastai.callback.state import ModelResetter, RNNCallback, StateFeeder
from rnn_fastai.callback.regularize import ar_penalty, tar_penalty, RNNRegularizer, rnn_cbs
from rnn_fastai.callback.schedule import layer_rates, AveragedSGD, KeepBest, VariableLength
from rnn_fastai.callback.precision import MixedPrecision
from rnn_fastai.callback.history import LossHistory, ShowDecoded
from rnn_fastai.callback.chunked_loss import ChunkedCrossEntropy, SampledCrossEntropy, LeanLoss
from rnn_fastai.callback.adversarial import AdversarialTraining, VirtualAdversarial, EntropyMinimization
from rnn_fastai.callback.capture import HiddenStateCapture
from rnn_fastai.learner.weights import (
    write_weights, read_weights, load_weights, match_embeds, TransferReport, read_vocab, write_vocab,
)
from rnn_fastai.learner.pretrained import fetch_pretrained, read_pretrained, shipped_vocab, write_pretrained
from rnn_fastai.learner.text import TextLearner, SequentialRNN
from rnn_fastai.learner.writing import ScoringLearner, WritingLearner
from rnn_fastai.learner.lm import LMLearner, language_model_learner
from rnn_fastai.learner.rnn import (
    ModuleModel, RNNLearner, NextTokenLearner, sequence_model, module_learner, rnn_learner,
)
from rnn_fastai.learner.classifier import (
    PoolingLinearClassifier, ClassifierLearner, text_classifier_learner, mean_answer, BidirectionalEnsemble,
    combine_directions, both_ways,
)
from rnn_fastai.learner import calibration as _calibration   # gives classifiers `calibrate`, `class_report` and others
from rnn_fastai.learner.tagger import (
    CRFLoss, TagMetric, TagAccuracy, EntityF1, Tagging, FoundEntity, TaggerLearner, tagger_learner,
    tagger_plan, train_tagger,
)
from rnn_fastai.learner.checkpoint import Checkpoint, CheckpointError, last_checkpoint, list_checkpoints
from rnn_fastai.learner.ulmfit import lm_texts, fine_tune_lm, new_classifier, fine_tune_classifier, ulmfit
from rnn_fastai.learner.text_lstm import (
    MeanClassifier, mean_of_learners, mixed_loaders, mixed_objective, text_lstm_learner, text_lstm,
)
from rnn_fastai.learner.pseudo import with_pseudo_labels
from rnn_fastai.models.origin import maker
from rnn_fastai.ship.bundle import load_bundle, load_learner
from rnn_fastai.ship.storage import BundleError
from rnn_fastai.ship.card import model_card
from rnn_fastai.ship.hub import HubError, from_hub
from rnn_fastai.ship.onnx import export_onnx
from rnn_fastai.ship.onnx_model import OnnxModel
from rnn_fastai.ship.serve import serve
from rnn_fastai.ship import widget as _widget   # gives learners `explore`
