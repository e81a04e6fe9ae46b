"""The token maps of a split by number, from the files of ``varlab.data.tokens``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varlab.data.format.foreign import map_array
from varlab.data.tokens import RUN, TokenSet, TokenShard, dtype_for, fingerprint
from varlab.errors import VarlabError

__all__ = ["TokenReader"]

log = logging.getLogger(__name__)


class TokenReader:
    """The token maps of a split by number. Files are mapped into memory; each process checks a file before its first use.

    Raises:
        VarlabError: the split has no tokens; later, on reading: a file is missing or has changed.
    """

    def __init__(self, tokens: TokenSet, split: str):
        self._folder, self._shards = tokens.folder, tokens.splits.get(split, ())
        if not self._shards:
            raise VarlabError(f"{tokens.folder} holds no {split} tokens: encode a shard set that has that split.")
        self._dtype, self._tokens, self._vocab_size = dtype_for(tokens.vocab_size), tokens.tokens, tokens.vocab_size
        self._views = tokens.views if split == "train" else 1
        self.label_N = torch.from_numpy(self._labels(tokens, split).astype(np.int64))
        self.shard_N = np.repeat(np.arange(len(self._shards)), [shard.count for shard in self._shards])
        self._first_S = np.concatenate([[0], np.cumsum([shard.count for shard in self._shards])[:-1]])
        self._maps: dict[int, NDArray[np.integer]] = {}

    def __len__(self) -> int:
        return len(self.shard_N)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": {}}

    def read(self, index_B: Tensor, view_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """idx_BP int32 of those images, each in one of its views; and which of them could be read (bool)."""
        views = view_B.tolist() if view_B is not None else [0] * len(index_B)
        idx_BP = np.empty((len(index_B), self._tokens), dtype=self._dtype)
        index = index_B.numpy()
        shards = self.shard_N[index]
        rows: Sequence[int] = (index - self._first_S[shards]).tolist()
        for place, (shard, row, view) in enumerate(zip(shards.tolist(), rows, views, strict=True)):
            idx_BP[place] = self._map(shard)[row, view]
        valid_B = idx_BP[:, 0] != np.iinfo(self._dtype).max
        if (idx_BP[valid_B] >= self._vocab_size).any():
            raise VarlabError(
                f"{self._folder} holds tokens that are none of {self._vocab_size}: run `varlab encode` again."
            )
        return torch.from_numpy(idx_BP.astype(np.int32)), torch.from_numpy(valid_B)

    def _map(self, shard: int) -> NDArray[np.integer]:
        if shard not in self._maps:
            file = self._shards[shard]
            self._maps[shard] = self._load(file, (file.count, self._views, self._tokens), self._dtype)
        return self._maps[shard]

    def _labels(self, tokens: TokenSet, split: str) -> NDArray[np.integer]:
        """The labels of all images."""
        count = sum(shard.count for shard in self._shards)
        file = tokens.labels.get(split)
        if file is None:
            log.info("%s has no digest of its %s labels: encode again to have them verified", self._folder, split)
            file = TokenShard(f"{split}.labels.npy", count, "")
        labels = self._load(file, (count,), None)
        if labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
            raise VarlabError(
                f"{self._folder / file.file} holds no labels: run `varlab encode` again, or copy it here."
            )
        return labels

    def _load(
        self, file: TokenShard, shape: tuple[int, ...], dtype: np.dtype[np.unsignedinteger] | None
    ) -> NDArray[np.integer]:
        """A file as an array, once its bytes were compared with their digest, if it has one."""
        path = self._folder / file.file
        again = f"remove {self._folder / RUN} and run the same `varlab encode` again, or copy a sound file here"
        if not path.is_file():
            raise VarlabError(f"{path} is missing: {again}.")
        try:
            if file.check and fingerprint(path) != file.check:
                raise VarlabError(f"{path} holds other bytes than were written: {again}.")
            array: NDArray[Any] = map_array(path, shape=shape, dtype=dtype)
        except (OSError, ValueError) as e:
            raise VarlabError(f"{path} cannot be read ({e}): {again}.") from e
        return array
