"""Where the streaming form of trajectory memory keeps the past: a table of fixed size, or a log of everything.

Both take, at each position, the address of a context with what is to be recalled when it comes again, and give back the
latest entries of an address: as many and the same as `models.coincidence.coincidences` links at once.

Shapes: B batch, D width, H heads, L spans of contexts, K positions of a slot, C = L K candidates, M slots, E bits of a
code, W width of an entry, R last inputs, S last symbols.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.layers import MIN_CACHE

NONE = -1  # the address of no context


class Table(NamedTuple):
    """Slots of a fixed number that keep the latest K positions each; written in place.

    addresses: of the contexts, -1 where empty, (B H L M, K). entries: code at the context and value at its successor,
    (B H L M, K, W). first: where the slots of a head and span begin, (B, H, L).
    """

    addresses: Tensor
    entries: Tensor
    first: Tensor

    @classmethod
    def empty(
        cls, shape_BHL: tuple[int, int, int], num_slots: int, num_matches: int, width: int, like: Tensor
    ) -> Table:
        """A table without positions."""
        first = torch.arange(shape_BHL[0] * shape_BHL[1] * shape_BHL[2], device=like.device).view(shape_BHL) * num_slots
        addresses = torch.full((first.numel() * num_slots, num_matches), NONE, dtype=torch.int32, device=like.device)
        return cls(addresses, like.new_zeros(*addresses.shape, width), first)

    def slots(self, address_BHL: Tensor) -> Tensor:
        """Where an address belongs, (B H L,)."""
        return (self.first + address_BHL % (len(self.addresses) // self.first.numel())).flatten()

    def write(self, address_BHL: Tensor, entry_BHW: Tensor) -> Table:
        """Put an entry in front of its slots; the table given must not be used any more."""
        slot_N, (B, H, L) = self.slots(address_BHL), address_BHL.shape
        address_N1, entry_BHLW = address_BHL.reshape(-1, 1).int(), entry_BHW.unsqueeze(2).expand(B, H, L, -1)
        if self.addresses.size(1) > 1:
            kept = self.addresses.index_select(0, slot_N)[:, :-1]
            address_N1 = torch.cat((address_N1, kept), 1)
            entry_N1W = entry_BHLW.reshape(len(slot_N), 1, -1)
            entry_BHLW = torch.cat((entry_N1W, self.entries.index_select(0, slot_N)[:, :-1]), 1)
        self.addresses.index_copy_(0, slot_N, address_N1)
        self.entries.index_copy_(0, slot_N, entry_BHLW.reshape(len(slot_N), *self.entries.shape[1:]))
        return self

    def read(self, address_BHL: Tensor) -> tuple[Tensor, Tensor]:
        """Entries (B H, C, W) of an address's slots, and which of them are the address's own (B H, C)."""
        slot_N, (B, H, _) = self.slots(address_BHL), address_BHL.shape
        own_NK = self.addresses.index_select(0, slot_N) == address_BHL.reshape(-1, 1)
        return self.entries.index_select(0, slot_N).view(B * H, -1, self.entries.size(2)), own_NK.view(B * H, -1)


class Log(NamedTuple):
    """All positions so far, in the place of a table with any number of slots; a token costs O(T) comparisons.

    addresses (B, capacity, H, L), entries (B, capacity, H, W), of which `length` are filled; capacity doubles.
    """

    addresses: Tensor
    entries: Tensor
    length: int
    num_matches: int

    @staticmethod
    def capacity(length: int, num_matches: int) -> int:
        """Positions that there is room for after `length` were written; never fewer than are looked for."""
        capacity = max(MIN_CACHE, num_matches)
        while capacity < length:
            capacity *= 2
        return capacity

    @classmethod
    def empty(cls, shape: tuple[int, int, int], num_matches: int, width: int, like: Tensor) -> Log:
        """A log without positions; shape (B, H, L)."""
        B, H, L = shape
        capacity = cls.capacity(0, num_matches)
        addresses = torch.full((B, capacity, H, L), NONE, dtype=torch.int32, device=like.device)
        return cls(addresses, like.new_zeros(B, capacity, H, width), 0, num_matches)

    def write(self, address_BHL: Tensor, entry_BHW: Tensor) -> Log:
        """The log with one more position; the one given must not be used any more."""
        addresses, entries = self.addresses, self.entries
        if self.length == addresses.size(1):
            addresses = torch.cat((addresses, torch.full_like(addresses, NONE)), 1)
            entries = torch.cat((entries, torch.zeros_like(entries)), 1)
        addresses[:, self.length], entries[:, self.length] = address_BHL.int(), entry_BHW
        return Log(addresses, entries, self.length + 1, self.num_matches)

    def read(self, address_BHL: Tensor) -> tuple[Tensor, Tensor]:
        """The latest entries (B H, C, W) of an address, and which of them there are (B H, C)."""
        same = self.addresses == address_BHL.unsqueeze(1)
        position_P111 = torch.arange(self.addresses.size(1), device=same.device).view(-1, 1, 1)
        latest_BCHL = torch.where(same, position_P111, NONE).topk(self.num_matches, 1).values
        latest_GC = latest_BCHL.permute(0, 2, 3, 1).flatten(2).flatten(0, 1)
        index = latest_GC.clamp(min=0).unsqueeze(-1).expand(-1, -1, self.entries.size(-1))
        return self.entries.transpose(1, 2).flatten(0, 1).gather(1, index), latest_GC >= 0


class MemoryState(NamedTuple):
    """What a memory keeps of the past.

    The last inputs (B, R, D), and symbols, latest first (B, S, H); the contexts of the previous position, whose
    successor has not come yet, by address (B, H, L) and code (B, H, E); and what was stored of all before.
    """

    inputs: Tensor
    symbols: Tensor
    address: Tensor
    code: Tensor
    store: Table | Log
