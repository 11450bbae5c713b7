"""Series per second of stage-two training: padded batches by length beside a batch-of-one loop over a table.

Run: ``python experiments/benchmarks/sequence_speed.py [--series 21000] [--batch 32] [--threads 1]``. The loop is the
published approach (Burduja 2020): for each series all rows of a pandas table with its id are searched, sorted by
position and turned into tensors, and one series makes one optimiser step of a stacked bidirectional LSTM. Its cost
grows with the table: the paper's has 21,000 series. Both sides hold the same made-up embeddings (120 features, six
probabilities and six labels of each slice), compute in one process without loader workers, and take turns, so that a
busy machine slows both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import in_turns, table

from hemlearn.config.schema import SequenceConfig
from hemlearn.models.sequence import build_sequence
from hemlearn.models.series_layers import slice_mask

FEATURES, LABELS = 120, 6
FEW = 8  # series of a turn of the loop
NAMES = [f"feature_{i}" for i in range(FEATURES)], [f"prob_{i}" for i in range(LABELS)], [str(i) for i in range(LABELS)]


def make_table(series: int, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Slices of ``series`` series of 24 to 40 slices: the table in random order, the same values in order, lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(24, 41, size=series)
    rows = int(lengths.sum())
    values = rng.standard_normal((rows, FEATURES + 2 * LABELS), dtype=np.float32)
    values[:, FEATURES:] = (values[:, FEATURES:] > 1).astype(np.float32)
    ids = np.array([f"1.2.840.113619.2.{number:08d}" for number in range(series)], dtype=object)
    table = pd.DataFrame(values, columns=[*NAMES[0], *NAMES[1], *NAMES[2]])
    table.insert(0, "series_id", np.repeat(ids, lengths))
    place = np.arange(rows) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    table.insert(1, "z_mm", 5.0 * place)
    return table.iloc[rng.permutation(rows)].reset_index(drop=True), values, lengths


class Published(nn.Module):
    """The published network for one series without padding."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        between = 0.3 if layers > 1 else 0.0
        self.lstm = nn.LSTM(FEATURES + LABELS, hidden, layers, batch_first=True, bidirectional=True, dropout=between)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(2 * hidden + LABELS, LABELS)

    def forward(self, x: Tensor, probabilities: Tensor) -> Tensor:
        """Logits (1, S, L) of embeddings (1, S, D)."""
        states = self.lstm(torch.cat([x, probabilities], -1))[0]
        logits: Tensor = self.output(self.dropout(torch.cat([states, probabilities], -1)))
        return logits


def loop(slices_of_all: pd.DataFrame, hidden: int, layers: int) -> Callable[[], int]:
    """A function that trains on a few series one by one and gives their number."""
    torch.manual_seed(0)
    model = Published(hidden, layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-5)
    ids, rng = slices_of_all["series_id"].unique(), np.random.default_rng(0)

    def run() -> int:
        for series in rng.choice(ids, FEW, replace=False):
            slices = slices_of_all[slices_of_all["series_id"] == series].sort_values("z_mm")
            arrays = (slices[names].to_numpy(np.float32, copy=True) for names in NAMES)
            x, probabilities, labels = map(torch.from_numpy, arrays)
            loss = F.binary_cross_entropy_with_logits(model(x[None], probabilities[None])[0], labels)
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        return FEW

    return run


def batches(
    values: np.ndarray, lengths: np.ndarray, hidden: int, layers: int, size: int, bf16: bool = False
) -> Callable[[], int]:
    """The same with padded batches of ``size`` series of about equal length; ``bf16``: as precision=bf16-mixed does."""
    torch.manual_seed(0)
    cfg = SequenceConfig(name="lstm", hidden=hidden, layers=layers, dropout=0.3, probabilities="both")
    model = build_sequence(cfg, width=FEATURES, outputs=LABELS)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-5, fused=True)
    ends = np.cumsum(lengths)
    tensor, rng = torch.from_numpy(values), np.random.default_rng(0)

    def run() -> int:
        order = np.argsort(lengths + rng.random(len(lengths)), kind="stable")
        blocks = [order[first : first + size] for first in range(0, len(order) - size + 1, size)]
        for block in rng.permutation(len(blocks))[:4]:
            chosen = blocks[block]
            parts = [tensor[ends[one] - lengths[one] : ends[one]] for one in chosen]
            padded = nn.utils.rnn.pad_sequence(parts, batch_first=True)
            sizes = torch.from_numpy(lengths[chosen])
            x, probabilities, labels = torch.split(padded, [FEATURES, LABELS, LABELS], -1)
            mask = slice_mask(sizes, padded.shape[1])
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(x, sizes, probabilities).slices[mask]
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels[mask])
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        return 4 * size

    return run


def main() -> None:
    """Measure and print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--series", type=int, default=21_000, help="series in the table")
    parser.add_argument("--batch", type=int, default=32, help="series in a batch")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of both sides")
    parser.add_argument("--bf16", action="store_true", help="batches as trainer.precision=bf16-mixed computes them")
    parser.add_argument("--object-ids", action="store_true", help="series ids as pandas before 3 (and the paper) held")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    slices, values, lengths = make_table(given.series)
    if given.object_ids:
        slices["series_id"] = slices["series_id"].astype(object)
    kind = "bf16" if given.bf16 else "float32"
    print(f"{len(lengths)} series, {len(slices)} slices, ids as {slices['series_id'].dtype}, pandas {pd.__version__}")
    print(f"{given.threads} thread(s), {kind}")
    for layers, hidden in ((3, 256), (1, 128)):
        sides = {
            f"batches of {given.batch}": batches(values, lengths, hidden, layers, given.batch, given.bf16),
            "batch of one over a table": loop(slices, hidden, layers),
        }
        print(f"\nlstm, {layers} x {hidden}\n\n{table(*in_turns(sides), 'series')}", flush=True)


if __name__ == "__main__":
    main()
