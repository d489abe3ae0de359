"""The training batches of a run, from the token file or, where they fit, from the GPU's own memory."""

import numpy as np
import torch
from torch import Tensor

from config import Settings
from dataset import TokenFile, draw_batch, draw_starts
from model.device import to_device
from model.training import distributed


class Batches:
    """batches(step) gives (inputs, targets), both (B, T) int64 on the device: a pure function of (seed, step).

    Each of several processes gets its own rows. If a quarter of a GPU's free memory holds the whole token file, the
    file moves there at the start, and a batch costs the bus only a few numbers.
    """

    def __init__(self, data: TokenFile, settings: Settings, device: torch.device):
        self.data, self.device, self.resident = data, device, None
        self.shape = (settings.block_size, settings.batch_size, settings.seed)
        self.rows = distributed.batch_rows(settings.batch_size)
        if device.type == "cuda" and 4 * len(data) < torch.cuda.mem_get_info(device)[0] / 4:
            self.move_to_device()

    def move_to_device(self) -> None:
        """Copy all tokens to the device, as int32 (torch has little arithmetic for uint16)."""
        self.resident = torch.from_numpy(self.data.tokens[:].astype(np.int32)).to(self.device)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        if self.resident is None:
            inputs, targets = draw_batch(self.data.tokens, *self.shape, step, self.rows)
            return to_device(inputs, self.device), to_device(targets, self.device)
        starts = to_device(draw_starts(len(self.data), *self.shape, step)[self.rows], self.device)
        window = self.resident[starts + torch.arange(self.shape[0] + 1, device=self.device)].long()  # (B, T + 1)
        return window[:, :-1], window[:, 1:]
