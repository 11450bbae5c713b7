"""Which part of a configuration determines a run's result, and the hash that names the run's folder."""

from __future__ import annotations

import json
from typing import Any, cast

from hemlearn.config.parts import PLACES, PROPORTIONAL
from hemlearn.config.schema import Config, to_dict
from hemlearn.plugins import fingerprints
from hemlearn.util.files import sha256
from hemlearn.util.secrets import masked

_IDENTITY = 2  # raised when the same configuration would give another split or another network
# Raised when a split of the same configuration would hold other patients; 1: until 29 November 2026, when a refinement
# towards even labels left repeated splits almost alike.
DRAWING = 2
_NOT_RESULT = {  # keys that leave the predictions of a run as they are
    "name",
    "output_dir",
    "force",
    "checkpoints",
    "logger",
    "data.root",
    "data.manifest",
    "data.labels",  # the manifest holds what these three decide
    "data.label_key",
    "data.series",
    "data.modality",  # the manifest holds what it decides
    "data.covariates",
    "data.cache_dir",
    "data.cache_limit",
    "data.num_workers",
    "data.resident",
    "data.phantom_patients",
    "data.phantom_seed",
    "split.file",
    "channels.name",
    "augmentation.name",
    "augmentation.note",
    "backbone.note",
    "freeze.name",
    "task.name",
    "trainer.name",
    "trainer.log_every_n_steps",
    "trainer.compile",
    "backbone.weights",
    "stage",  # their content counts: the checksum of the weights is part of the identity
}
# Keys that came later: at this value a run is what it was without them.
_LATER = {
    "trainer.find_batch_size": False,
    "task.triage_error": None,
    "task.triage_value": None,
    "task.top_k": 3,
    "data.part_weights": PROPORTIONAL,
    "channels.tone": None,
    "split.left_out": None,
    "task.method": "simclr",
    "task.projection": None,
    "task.temperature": 0.1,
    "task.momentum": 0.996,
    "task.labels_from": "slices",
    "sequence.steps": 10,
    "sequence.instances": 8,
    "sequence.instance_weight": 0.3,
    "volume.spacing": [5.0, 1.5, 1.5],
    "volume.size": [32, 128, 128],
    "volume.series_per_batch": 2,
    "freeze.method": "full",
    "freeze.layers": [],
    "freeze.rank": 8,
    "freeze.alpha": 16.0,
    "freeze.dropout": 0.0,
}


def result_keys(config: Config) -> dict[str, Any]:
    """The part of a configuration that determines a run's predictions, beside data and weights; no secret counts."""

    def prune(node: Any, prefix: str) -> Any:
        if not isinstance(node, dict):
            return node
        kept = {k: prune(v, f"{prefix}{k}.") for k, v in node.items() if f"{prefix}{k}" not in _NOT_RESULT}
        kept = {k: v for k, v in kept.items() if _LATER.get(f"{prefix}{k}", ...) != v}
        return {k: v for k, v in kept.items() if v != {}}

    given = to_dict(config)
    for spec in given["data"]["parts"].values():  # a part is told by its content, as any data set is
        for key in PLACES if isinstance(spec, dict) else ():
            spec.pop(key, None)
    found = cast("dict[str, Any]", prune(masked(given), ""))
    return found if config.plugins else {key: value for key, value in found.items() if key != "plugins"}


def draws_patients(config: Config) -> bool:
    """Whether hemlearn may draw the patients of the run's split, rather than read them from a file."""
    return config.split.name != "file" or config.split.target_ is not None


def run_hash(config: Config, *, manifest: str, weights: str | None, split_file: str | None) -> str:
    """Twelve hex digits that name a run: configuration, data, weights, how patients are divided, a stranger's code.

    Args:
        config: The job's configuration.
        manifest: Checksum of the manifest.
        weights: Checksum of the backbone weights, None without weights.
        split_file: Checksum of what divides patients beside ids and keys, see
            :func:`hemlearn.data.splits.given_split`.

    Raises:
        ConfigError: A class that the configuration names cannot be imported.
    """
    keys = result_keys(config)
    code = fingerprints(keys)
    identity = {
        "version": _IDENTITY,
        "config": keys,
        "manifest": manifest,
        "weights": weights,
        "split_file": split_file,
        **({"drawing": DRAWING} if draws_patients(config) else {}),
        **({"code": code} if code else {}),
    }
    text = json.dumps(identity, sort_keys=True, default=str)
    return sha256(text)[:12]
