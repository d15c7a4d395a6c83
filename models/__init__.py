"""Language models that grow, and the baseline they are measured against."""

from models.base import LanguageModel
from models.palm import Palm
from models.potatolm import PotatoLM
from models.sparse_rnn.model import SparseRNN
from models.tokenformer import TokenFormer
from models.trajectory.model import TrajectoryLM
from models.transformer import Transformer

__all__ = ["LanguageModel", "Palm", "PotatoLM", "SparseRNN", "TokenFormer", "TrajectoryLM", "Transformer"]
