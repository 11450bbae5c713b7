"""``hemlearn doctor``: what this installation has and what it lacks."""

from __future__ import annotations

from hemlearn.commands import read
from hemlearn.config.requests import DoctorRequest

HELP = """usage: hemlearn doctor

Print versions, devices, where caches live, which backbone weights are available without network, and W&B's mode.
"""


def main(argv: list[str]) -> int:
    """Print the report."""
    if read(DoctorRequest, argv, HELP) is None:
        return 0
    import os
    import platform

    import torch
    from rich.console import Console
    from rich.table import Table

    from hemlearn.config.compose import conf_dir
    from hemlearn.models.weights import offline_weights
    from hemlearn.training.loggers import wandb_mode
    from hemlearn.training.run import versions
    from hemlearn.util.files import cache_dir

    console = Console()
    facts = Table(title="hemlearn doctor", show_header=False)
    facts.add_row("python", platform.python_version())
    for name, version in versions().items():
        facts.add_row(name, version)
    facts.add_row("configuration", str(conf_dir()))
    facts.add_row("cache", str(cache_dir(None)))
    facts.add_row("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts.add_row("GPU", ", ".join(gpus) or "none (trainer=cpu)")
    facts.add_row("W&B", wandb_mode("auto"))
    console.print(facts)
    weights = Table(title="pretrained weights without network")
    for column in ("backbone", "available", "source"):
        weights.add_column(column)
    for name, available, source in offline_weights():
        weights.add_row(name, "yes" if available else "no", source)
    console.print(weights)
    return 0
