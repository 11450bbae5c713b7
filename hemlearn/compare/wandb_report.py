"""The page of a comparison as a report and its files as one artifact of Weights & Biases."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemlearn.util.errors import RunError
from hemlearn.util.privacy import wandb_settings

if TYPE_CHECKING:
    from hemlearn.compare.comparison import Comparison

logger = logging.getLogger(__name__)


def log_report(result: Comparison, files: Sequence[Path], project: str, entity: str | None = None) -> Path | None:
    """Log the page and every file of a comparison as one artifact of type ``report``.

    Online where the user is logged in, else offline; ``WANDB_MODE`` decides when it is set (``disabled`` logs nothing).
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # before the import, which would print otherwise
    import wandb

    # As in hemlearn.training.loggers, which would import the whole training stack.
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
    if mode == "disabled":
        logger.info("W&B is disabled: the report stays in %s", files[0].parent)
        return None
    folder = files[0].parent.resolve()
    try:
        about = {"keys": result.keys, "groups": result.groups, "runs": result.runs}
        options: Any = {"mode": mode, "settings": wandb_settings()}
        run = wandb.init(project=project, entity=entity, job_type="compare", dir=folder, config=about, **options)
        artifact = wandb.Artifact("comparison", type="report", description=result.headline.better[:1000])
        for file in files:
            artifact.add_file(str(file), name=file.name)
        page = next(file for file in files if file.suffix == ".html")
        run.log({"report": wandb.Html(page.read_text(encoding="utf-8"), inject=False)})
        run.log_artifact(artifact)
        where = Path(run.dir).parent
        run.finish()
    except (OSError, RuntimeError, ValueError, wandb.Error) as error:
        raise RunError(
            f"W&B did not take the report ({error}); the files are in {folder}",
            remedy="log in with `wandb login`, or set WANDB_MODE=offline",
        ) from error
    return where
