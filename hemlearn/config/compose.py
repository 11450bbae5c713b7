"""Compose, check and resolve a run's configuration.

Hydra composes YAML groups; this module checks the result against :mod:`hemlearn.config.schema` and gathers *every*
fault of one command before it speaks. It holds the only call of ``hydra.utils.instantiate`` and imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hemlearn.config.rules import override_problem, range_problems, schema_keys, tree_problems
from hemlearn.config.schema import Config
from hemlearn.util.errors import ConfigError, hint
from hemlearn.util.files import sha256

PRIMARY = "train"
_PATHS = (
    "data.root",
    "data.manifest",
    "data.cache_dir",
    "output_dir",
    "split.file",
    "backbone.weights",
    "logger.tracking_uri",
)
_PATTERNS = ("data.patient_pattern",)
_IDENTITY = 2  # raised when the same configuration would give another split or another network
_NOT_RESULT = {  # keys that leave the predictions of a run as they are
    "name",
    "output_dir",
    "logger",
    "data.root",
    "data.manifest",
    "data.cache_dir",
    "data.num_workers",
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
    "trainer.threads",
    "trainer.compile",
    "backbone.weights",
    "stage",  # their content counts: the checksum of the weights is part of the identity
}


def conf_dir() -> Path:
    """Folder of the shipped configuration: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def _raise(problems: Sequence[str]) -> None:
    if problems:
        unique = list(dict.fromkeys(problems))
        count = "1 error" if len(unique) == 1 else f"{len(unique)} errors"
        listed = "\n".join(f"  - {problem}" for problem in unique)
        raise ConfigError(
            f"{count} in the configuration:\n{listed}",
            remedy="correct the keys above; `hemlearn train --cfg job` prints every key with its value",
        )


def to_config(composed: DictConfig) -> Config:
    """The typed configuration of one job.

    Raises:
        ConfigError: Listing every unknown key, value of a wrong type and value out of range together.
    """
    try:
        tree = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0], remedy="give the key a value, or mend the ${...}") from error
    assert isinstance(tree, dict)
    return from_dict(typing.cast("dict[str, Any]", tree))


def from_dict(tree: dict[str, Any]) -> Config:
    """The typed configuration of a plain dictionary, such as a run folder's ``config.yaml`` (errors as above)."""
    _raise(tree_problems(tree))
    merged = OmegaConf.merge(OmegaConf.structured(Config), tree)
    config = typing.cast(Config, OmegaConf.to_object(merged))
    _raise(range_problems(config))
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain dictionaries, lists and scalars."""
    return dataclasses.asdict(config)


def compose(overrides: Sequence[str], config_dir: str | None = None) -> Config:
    """One job's configuration from command-line overrides, for commands that are not sweeps."""
    return to_config(check_overrides(quote_paths(overrides), config_dir))


def _compose(overrides: Sequence[str], config_dir: str | None) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_defaults()
    extra = [f'hydra.searchpath=["file://{Path(config_dir).resolve()}"]'] if config_dir else []
    running = GlobalHydra.instance().hydra  # a job may compose the configuration of the run it builds on
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra_compose(PRIMARY, overrides=[*extra, *overrides], return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = running


def quote_paths(overrides: Sequence[str]) -> list[str]:
    """Put quotes around file names that Hydra's grammar cannot read (``=``, parentheses, ü), and around patterns."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()

    def quoted(text: str) -> str:
        key, _, value = text.partition("=")
        name = key.lstrip("+")
        if name not in (*_PATHS, *_PATTERNS):
            return text
        # A pattern may be valid grammar and yet mean something else: P(x) is a call, [0-9] a list.
        if name in _PATHS or value in ("", "null") or value[0] in "\"'":
            try:
                parser.parse_override(text)
            except HydraException:
                pass
            else:
                return text
        return f'{key}="{_escaped(value)}"'

    return [quoted(text) for text in overrides]


def _escaped(value: str) -> str:
    """As it stands between double quotes in Hydra's grammar: only backslashes before a quote are special."""
    return re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ("\\" if found[2] else "") + found[2], value)


def check_overrides(overrides: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """The configuration of a command line, checked (see :func:`check_command`)."""
    return check_command(overrides, config_dir)[0]


def check_command(overrides: Sequence[str], config_dir: str | None = None) -> tuple[DictConfig, DictConfig]:
    """Refuse a command line with unknown keys, unknown group options or wrong values, naming all of them.

    Sweep values (``a=1,2``) are checked one by one. What is right is composed too, so that faults inside YAML files
    and combinations show in the same message.

    Returns:
        The configuration composed from everything but sweep values, and Hydra's own section of it.

    Raises:
        ConfigError: With one line per fault and the nearest known name.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    folders = [conf_dir(), *([Path(config_dir)] if config_dir else [])]
    if config_dir and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder", remedy="give a folder of YAML groups")
    problems: list[str] = []
    usable: list[str] = []
    swept: list[str] = []
    for text in overrides:
        problem, good = override_problem(text, folders)
        if problem:
            problems.append(problem)
        if good:
            parsed = OverridesParser.create().parse_override(text)
            if parsed.is_sweep_override():
                swept.append(parsed.key_or_group)
            else:
                usable.append(text)
    composed, own = OmegaConf.create(), OmegaConf.create()
    try:
        composed = _compose(usable, config_dir)
    except HydraException as error:
        problems.append(str(error).splitlines()[0])
    except YAMLError as error:
        problems.append(f"a YAML file cannot be read: {' '.join(str(error).split())}")
    else:
        # A sweep preset holds overrides too.
        preset = OmegaConf.to_container(OmegaConf.select(composed, "hydra.sweeper.params") or OmegaConf.create())
        assert isinstance(preset, dict)
        for key, value in preset.items():
            problem, _ = override_problem(f"{key!s}={value}", folders)
            problems += [problem] if problem else []
            swept.append(str(key))
        own = composed.hydra
        composed = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        try:
            to_config(composed)
        except ConfigError as error:
            lines = [line.strip()[2:] for line in error.problem.splitlines() if line.startswith("  - ")]
            # A key given by the sweep is not there yet when the rest is composed alone.
            problems += [
                line
                for line in lines or [error.problem]
                if not any(line.startswith((f"{key}=", f"{key}.")) for key in swept)
            ]
    _raise(problems)
    return composed, own


def _when(condition: Any, then: Any, otherwise: Any) -> Any:
    """Resolver ``${when:CONDITION,THEN,ELSE}``: a value that follows from another key."""
    if not isinstance(condition, bool):
        raise ValueError(f"when: {condition!r} is neither true nor false")
    return then if condition else otherwise


def register_defaults() -> None:
    """Give Hydra every key of the schema with its default, so that a YAML group names only what it changes.

    They are registered as plain values, not as a structured config: Hydra would stop at the first unknown key, while
    :func:`check_overrides` reports them all.
    """
    from hydra.core.config_store import ConfigStore

    OmegaConf.register_new_resolver("when", _when, replace=True)
    node = OmegaConf.create(to_dict(Config()))
    for key, kind in schema_keys().items():
        if typing.get_origin(kind) is dict:  # its inner names are the user's: no `+` is needed to add one
            OmegaConf.set_struct(OmegaConf.select(node, key), False)
    ConfigStore.instance().store(name="schema", node=node)


# --- identity -----------------------------------------------------------------------------------------------------


def result_keys(config: Config) -> dict[str, Any]:
    """The part of a configuration that determines a run's predictions, beside data and weights."""

    def prune(node: Any, prefix: str) -> Any:
        if not isinstance(node, dict):
            return node
        kept = {k: prune(v, f"{prefix}{k}.") for k, v in node.items() if f"{prefix}{k}" not in _NOT_RESULT}
        return {k: v for k, v in kept.items() if not (isinstance(v, dict) and not v)}

    return typing.cast("dict[str, Any]", prune(to_dict(config), ""))


def run_hash(config: Config, *, manifest: str, weights: str | None, split_file: str | None) -> str:
    """Twelve hex digits that name a run: configuration, data, weights and split-file content.

    Args:
        config: The job's configuration.
        manifest: Checksum of the manifest.
        weights: Checksum of the backbone weights, None without weights.
        split_file: Checksum of ``split.file``, None unless ``split=file``.
    """
    import json

    identity = {
        "version": _IDENTITY,
        "config": result_keys(config),
        "manifest": manifest,
        "weights": weights,
        "split_file": split_file,
    }
    text = json.dumps(identity, sort_keys=True, default=str)
    return sha256(text)[:12]


# --- objects ------------------------------------------------------------------------------------------------------


def instantiate(node: dict[str, Any], where: str) -> Any:
    """Build the object that ``{_target_: dotted.name, argument: value}`` describes.

    Args:
        node: Target and arguments.
        where: Key of the node, for messages, such as ``augmentation.steps[2]``.

    Raises:
        ConfigError: No ``_target_``, an unknown one (with the nearest name), or arguments it does not take.
    """
    from hydra.errors import HydraException
    from hydra.utils import get_object
    from hydra.utils import instantiate as hydra_instantiate

    target = node.get("_target_") if isinstance(node, dict) else None
    if not isinstance(target, str):
        raise ConfigError(f"{where}={node!r}: no _target_", remedy="write {_target_: package.Class, argument: value}")
    try:
        get_object(target)
    except Exception as error:  # importing a user's target may raise anything; it is reported
        raise ConfigError(
            f"{where}._target_={target!r}: {_target_hint(target, error)}",
            remedy="use the dotted name of an importable class",
        ) from error
    try:
        return hydra_instantiate(node, _convert_="all")
    except HydraException as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{where} ({target}): {cause}", remedy="check the argument names and values") from error


def _target_hint(target: str, error: Exception) -> str:
    import importlib

    module, _, name = target.rpartition(".")
    try:
        names = dir(importlib.import_module(module))
    except (ImportError, ValueError):
        return f"cannot be imported ({str(error).splitlines()[0]})"
    return f"{module} has no '{name}'{hint(name, names)}"
