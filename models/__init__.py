"""Language models that grow, the baseline they are measured against, and the mixers of all, each of use alone."""

from models.base import LanguageModel
from models.layers import causal_attention
from models.palm import Palm, attention_free, attention_on_detail
from models.potatolm import PassTheCard, PotatoLM
from models.sparse_rnn.model import SparseRecurrence, SparseRNN
from models.tokenformer import Pattention, TokenFormer
from models.trajectory.index import ContextIndex
from models.trajectory.links import Candidates
from models.trajectory.model import TrajectoryLM, TrajectoryMemory
from models.trajectory.tape import Tape
from models.transformer import Transformer

__all__ = [
    "Candidates",
    "ContextIndex",
    "LanguageModel",
    "Palm",
    "PassTheCard",
    "Pattention",
    "PotatoLM",
    "SparseRNN",
    "SparseRecurrence",
    "Tape",
    "TokenFormer",
    "TrajectoryLM",
    "TrajectoryMemory",
    "Transformer",
    "attention_free",
    "attention_on_detail",
    "causal_attention",
]
