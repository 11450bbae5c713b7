"""A comparison handed to Weights & Biases: its page as a report, its files as one artifact."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hemlearn.errors import RunError

if TYPE_CHECKING:
    from hemlearn.reports.comparison.result import Comparison

logger = logging.getLogger(__name__)
NAME, KIND = "comparison", "report"


def log_report(result: Comparison, files: Sequence[Path], project: str, entity: str | None = None) -> Path | None:
    """Log the page and every file of a comparison as one artifact of type ``report``.

    Online where the user is logged in, else offline; ``WANDB_MODE`` decides when it is set (``disabled`` logs nothing).

    Args:
        result: The comparison, already written.
        files: What was written; the page is ``compare.html``.
        project: W&B project.
        entity: W&B entity; None takes the user's own.

    Returns:
        Folder of the W&B run beside the files (``wandb sync`` uploads an offline one); None where W&B is disabled.

    Raises:
        RunError: W&B refuses, such as an unknown entity.
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # before the import, which would print otherwise
    import wandb

    # As in hemlearn.loggers, which would import the whole training stack.
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
    if mode == "disabled":
        logger.info("W&B is disabled: the report stays in %s", files[0].parent)
        return None
    folder = files[0].parent.resolve()
    try:
        run = wandb.init(
            project=project,
            entity=entity,
            job_type="compare",
            dir=folder,
            mode=mode,  # type: ignore[arg-type]
            config={"keys": result.keys, "groups": result.groups, "runs": result.runs},
            settings=wandb.Settings(console="off", silent=True),
        )
        artifact = wandb.Artifact(NAME, type=KIND, description=result.headline.better[:1000])
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
