"""Where the streaming form of trajectory memory keeps the past: a table of fixed size, or a log of everything.

Each position is looked up by the addresses of its contexts; what is to be recalled when these come again is written
when the next position has come. The latest entries of an address are as many and the same as those that
`models.trajectory.coincidence.coincidences` links at once.

Shapes: B batch, D width, H heads, L spans of contexts, K positions of a slot, C = L K candidates, M slots, E bits of a
code, W width of an entry, R last inputs, S last symbols.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from models.layers import MIN_CACHE

NONE = -1  # the address of no context


class Slots(NamedTuple):
    """The slots of the addresses that were looked up last, and what they keep: an address is written as a number is.

    place (N,), N = B H L; address (B, H, L, 1); rows (B, H, L, K (1 + W)).
    """

    place: Tensor
    address: Tensor
    rows: Tensor


class Table(NamedTuple):
    """Slots of a fixed number that keep the latest K positions each; written in place.

    rows: of each position the address of its context, -1 where empty, as the bits of a floating-point number, the code
    there and the value at the successor, (B H L M, K (1 + W)): what is read together lies together. first: where the
    slots of a head and span begin, (B, H, L). num_slots: M. last: the slots looked up last.
    """

    rows: Tensor
    first: Tensor
    num_slots: int
    num_matches: int
    last: Slots

    @classmethod
    def empty(cls, shape: tuple[int, int, int], num_slots: int, num_matches: int, width: int, like: Tensor) -> Table:
        """A table without positions; shape (B, H, L)."""
        first = num_slots * torch.arange(math.prod(shape), device=like.device).view(shape)
        rows = like.new_zeros(first.numel() * num_slots, num_matches, 1 + width)
        rows.view(integers(like))[..., 0] = NONE
        table = cls(rows.flatten(1), first, num_slots, num_matches, Slots(first, first, first))
        return table.read(torch.full_like(first, NONE))[2]  # of no context: to write there changes nothing

    def read(self, address_BHL: Tensor) -> tuple[Tensor, Tensor, Table]:
        """Entries (B H, C, W) of an address's slots, which of them are its own (B H, C), and the table to write to."""
        B, H, L = self.first.shape
        place_N = (self.first + address_BHL % self.num_slots).view(-1)
        rows_NX, number_BHL1 = self.rows.index_select(0, place_N), address_BHL.to(integers(self.rows)).unsqueeze(-1)
        entry_GCX = rows_NX.view(B * H, L * self.num_matches, -1)
        own = rows_NX.view(number_BHL1.dtype).view(B, H, L, self.num_matches, -1)[..., 0] == number_BHL1
        last = Slots(place_N, number_BHL1.contiguous().view(self.rows.dtype), rows_NX.view(B, H, L, -1))
        return entry_GCX[..., 1:], own.view(B * H, -1), self._replace(last=last)

    def write(self, entry_BHW: Tensor) -> Table:
        """Put an entry of the contexts looked up last in front of their slots; the table given is used up."""
        place_N, address_BHL1, rows_BHLX = self.last
        entry_BHLW = entry_BHW.unsqueeze(2).expand(-1, -1, address_BHL1.size(2), -1)
        kept = rows_BHLX[..., : (self.num_matches - 1) * (1 + entry_BHW.size(-1))]
        self.rows.index_copy_(0, place_N, torch.cat((address_BHL1, entry_BHLW, kept), -1).flatten(0, 2))
        return self


def integers(like: Tensor) -> torch.dtype:
    """Integers as wide as the numbers of a tensor, in which an address has room."""
    return torch.int64 if like.dtype.itemsize == 8 else torch.int32


class Log(NamedTuple):
    """All positions so far, in the place of a table with any number of slots; a token costs O(T) comparisons.

    addresses (B, capacity, H, L), entries (B, capacity, H, W), of which `length` are filled; capacity doubles. last:
    the addresses that were looked up last, (B, H, L).
    """

    addresses: Tensor
    entries: Tensor
    last: Tensor
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
        return cls(addresses, like.new_zeros(B, capacity, H, width), addresses[:, 0], 0, num_matches)

    def write(self, entry_BHW: Tensor) -> Log:
        """The log with an entry of the contexts looked up last; the one given is used up."""
        addresses, entries = self.addresses, self.entries
        if self.length == addresses.size(1):
            addresses = torch.cat((addresses, torch.full_like(addresses, NONE)), 1)
            entries = torch.cat((entries, torch.zeros_like(entries)), 1)
        addresses[:, self.length], entries[:, self.length] = self.last, entry_BHW
        return self._replace(addresses=addresses, entries=entries, length=self.length + 1)

    def read(self, address_BHL: Tensor) -> tuple[Tensor, Tensor, Log]:
        """The latest entries (B H, C, W) of an address, which of them there are (B H, C), and the log to write to."""
        same = self.addresses == address_BHL.unsqueeze(1)
        position_P111 = torch.arange(self.addresses.size(1), device=same.device).view(-1, 1, 1)
        latest_BCHL = torch.where(same, position_P111, NONE).topk(self.num_matches, 1).values
        latest_GC = latest_BCHL.permute(0, 2, 3, 1).flatten(2).flatten(0, 1)
        index = latest_GC.clamp(min=0).unsqueeze(-1).expand(-1, -1, self.entries.size(-1))
        entries_GCW = self.entries.transpose(1, 2).flatten(0, 1).gather(1, index)
        return entries_GCW, latest_GC >= 0, self._replace(last=address_BHL.int())


class MemoryState(NamedTuple):
    """What a memory keeps of the past.

    The last inputs (B, R, D), how much of each the trajectory takes (R, D), how select weighs it, (D, H C) and (H C,),
    and the last symbols, latest first (B, S, H); the code (B, H, E) of the previous position, whose successor has not
    come yet; and what was stored before.
    """

    inputs: Tensor
    taps: Tensor
    preference: tuple[Tensor, Tensor]
    symbols: Tensor
    code: Tensor
    store: Table | Log
