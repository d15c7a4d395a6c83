"""SparseRNN: a recurrent net that attends over its own state."""

from models.sparse_rnn.model import SparseRecurrence, SparseRNN

__all__ = ["SparseRNN", "SparseRecurrence"]
