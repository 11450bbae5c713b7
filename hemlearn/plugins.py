"""Parts that are named in the configuration: a user's own classes by ``_target_``, shipped and registered ones by name.

A node ``{_target_: package.Class, argument: value}`` is imported, held against the class's signature and called
(:func:`resolve`). Packages named in ``plugins: [...]`` or in the entry-point group ``hemlearn.plugins`` are imported in
every process (:func:`load_plugins`); they may register parts by name (:func:`register`) and ship a ``conf`` folder.
What such code is made of is part of a run's identity (:func:`fingerprints`). Nothing heavy is imported here.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from hemlearn.util.errors import ConfigError, DataError, HemlearnError, hint
from hemlearn.util.files import sha256

GROUP = "hemlearn.plugins"
TRUSTED = (  # classes of these packages are not a stranger's code
    "hemlearn",
    "kornia.augmentation",
    "monai.transforms",
    "torchmetrics",
    "torchvision.transforms",
    "torch.optim",
    "torch.nn",
    "timm.optim",
    "pytorch_lightning.callbacks",
)
# What a run of somebody else's may name without being trusted: parts of these kinds, and no class that finds code by a
# string in its arguments (readers of files, wrappers of other programs). A function is never among them.
_KINDS = {
    "torch.nn.modules.module.Module",
    "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
    "torchmetrics.metric.Metric",
    "pytorch_lightning.callbacks.callback.Callback",
    "monai.transforms.transform.Transform",
    "hemlearn.config.schema.SplitConfig",
    "hemlearn.models.freeze.FreezePolicy",
}
# Of hemlearn's own no data module, task or backbone: they read files, ask hubs and build what their arguments describe.
_HARMLESS = (
    *(name for name in TRUSTED if not name.startswith(("hemlearn", "monai", "torchmetrics"))),
    *(f"hemlearn.models.{name}" for name in ("freeze", "losses", "sequence", "smoothing", "tissue")),
    *(f"hemlearn.{name}" for name in ("transforms", "evaluation.metrics", "training.callbacks", "data.splits")),
    *(f"monai.transforms.{name}" for name in ("croppad", "intensity", "smooth_field", "spatial")),
    *(f"torchmetrics.{name}" for name in ("aggregation", "classification", "regression")),
)
_OWN_KEYS = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")  # Hydra's words; the last two do nothing
NAMED = ("callbacks", "metrics")  # groups of several parts, each under a name of the user's
_UNSET = ("labels", "label_key", "series")  # schema keys that say nothing to a class with a default for them, if null
_LABELS = ("name", "note")  # schema keys that describe a choice: passed only to a class that cannot do without
T = TypeVar("T")


def target_of(node: Any) -> str | None:
    """The dotted name in the ``_target_`` of a mapping or option object; None where there is none.

    Example:
        >>> target_of({"_target_": "torch.nn.ReLU"}), target_of({"name": "relu"})
        ('torch.nn.ReLU', None)
    """
    found = node.get("_target_") if isinstance(node, Mapping) else getattr(node, "target_", None)
    return found if isinstance(found, str) else None


def find(target: str, where: str) -> Callable[..., Any]:
    """Import the class or function with the dotted name ``target``.

    Raises:
        ConfigError: It does not exist (with the nearest name of its module), its module raises, or it is not callable.
    """
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise _fault(where, target, "not a dotted name", "write package.module.Class")
    module, rest = _import(parts, where, target)
    found: Any = module
    for part in rest:
        inside = found
        try:
            found = getattr(inside, part)
        except AttributeError as error:
            names = [*dir(inside), *_submodules(inside)]
            place = getattr(inside, "__qualname__", inside.__name__)
            raise _fault(
                where,
                target,
                f"{place} has no '{part}'{hint(part, names)}",
                "use the dotted name of an importable class",
            ) from error
    if not callable(found):
        raise _fault(where, target, f"is a {type(found).__name__}, not a class or function", "name a class in it")
    return found  # type: ignore[no-any-return]


def resolve(
    node: Any, where: str, *, kind: type | tuple[type, ...] | None = None, partial: bool = False, **offered: Any
) -> Any:
    """Build what ``{_target_: package.Class, argument: value}`` describes; nodes inside arguments by the same rules.

    Args:
        node: A mapping, whose keys beside ``_target_`` are all arguments; or an option object of
            :mod:`hemlearn.config.schema`, whose own keys are passed only where the signature names them.
        where: Key of the node, for messages, such as ``augmentation.steps[2]``.
        kind: Class, or classes, of which the result must be an instance.
        partial: Return a :class:`functools.partial`, which needs no complete arguments.
        offered: What hemlearn supplies where the signature takes it; the user's own arguments win.

    Raises:
        ConfigError: No ``_target_``, one that cannot be used, an unknown or missing argument, an exception of the
            class's own, or a result of another kind.

    Example:
        >>> resolve({"_target_": "fractions.Fraction", "numerator": 3}, "here", denominator=4)
        Fraction(3, 4)
    """
    target = target_of(node)
    if target is None:
        raise ConfigError(f"{where}={node!r}: no _target_", remedy="write {_target_: package.Class, argument: value}")
    function = find(target, where)
    if isinstance(node, Mapping):
        given = {str(key): value for key, value in node.items() if key not in _OWN_KEYS}
        positional, later = list(node.get("_args_") or ()), bool(node.get("_partial_"))
        known: dict[str, Any] = {}
    else:
        given, known = dict(node.model_extra or {}), {key: getattr(node, key) for key in type(node).model_fields}
        positional, later = list(given.pop("_args_", None) or ()), bool(given.pop("_partial_", False))
        known.pop("target_")
    given = {key: _nested(value, f"{where}.{key}") for key, value in given.items() if key not in _OWN_KEYS}
    args = [_nested(value, f"{where}._args_[{index}]") for index, value in enumerate(positional)]
    parameters = _parameters(function)
    if parameters is not None:
        for key, value in known.items():
            named = parameters.get(key)
            silent = key in _LABELS or (key in _UNSET and value is None)
            if named is not None and (not silent or named.default is inspect.Parameter.empty):
                given.setdefault(key, value)
    return call(function, where, given, args=args, kind=kind, partial=partial or later, **offered)


def check(node: Any, where: str) -> None:
    """Refuse a node whose class cannot be imported or does not take its arguments, without building anything.

    Raises:
        ConfigError: As :func:`resolve`, but for missing arguments, some of which hemlearn offers later.
    """
    target = target_of(node)
    if target is not None:
        items = node if isinstance(node, Mapping) else node.model_extra or {}
        given = {str(key): value for key, value in items.items() if key not in _OWN_KEYS}
        call(find(target, where), where, given, args=list(items.get("_args_") or ()), partial=True)


def call(
    function: Callable[..., Any],
    where: str,
    given: Mapping[str, Any],
    *,
    args: Sequence[Any] = (),
    kind: type | tuple[type, ...] | None = None,
    partial: bool = False,
    **offered: Any,
) -> Any:
    """Call a class or function with ``given`` and what it takes of ``offered``; arguments and errors as in `resolve`.

    Example:
        >>> call(dict, "here", {"a": 1}, b=2)
        {'b': 2, 'a': 1}
    """
    target = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"
    parameters = _parameters(function)
    arguments = dict(given)
    if parameters is None:
        arguments = {**offered, **arguments}
    else:
        taken = [key for key in list(parameters)[: len(args)] if parameters[key].kind is not _VAR_POSITIONAL]
        free = [key for key, item in parameters.items() if key not in taken and item.kind in _BY_NAME]
        arguments |= {key: value for key, value in offered.items() if key in free and key not in arguments}
        if any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values()):
            named = _names_of_bases(function)  # torch.nn.Module has **kwargs only to refuse them
            passed = {k: v for k, v in offered.items() if k not in taken and (named is None or k in named)}
            arguments = {**passed, **arguments}
        else:
            unknown = [key for key in arguments if key not in free]
            if unknown:
                wrong = "; ".join(f"unknown argument '{key}'{hint(key, free)}" for key in unknown)
                remedy = f"it takes {', '.join(free)}" if free else "it takes no arguments"
                raise ConfigError(f"{where} ({target}): {wrong}", remedy=remedy)
        absent = [
            key
            for key, item in parameters.items()
            if item.default is inspect.Parameter.empty
            and item.kind not in (_VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            and key not in taken
            and key not in arguments
        ]
        if absent and not partial:
            raise ConfigError(
                f"{where} ({target}): lacks the argument {', '.join(map(repr, absent))}",
                remedy=f"give {', '.join(f'{where}.{key}=VALUE' for key in absent)}",
            )
    if partial:
        return functools.partial(function, *args, **arguments)
    try:
        made = function(*args, **arguments)
    except HemlearnError as error:
        raise ConfigError(f"{where} ({target}): {error.problem}", remedy=error.remedy) from error
    except (Exception, SystemExit) as error:  # a stranger's constructor may raise anything
        raise ConfigError(
            f"{where} ({target}): {type(error).__name__}: {error}{_line(error, function)}",
            remedy="check the argument names and values",
        ) from error
    if kind is not None and not isinstance(made, kind):
        kinds = " or ".join(item.__name__ for item in (kind if isinstance(kind, tuple) else (kind,)))
        raise ConfigError(f"{where} ({target}) is a {type(made).__name__}, not a {kinds}", remedy=f"name a {kinds}")
    return made


@contextmanager
def calling(part: Any, method: str, kind: type[HemlearnError] = DataError) -> Iterator[None]:
    """Whatever a method of a stranger's class raises becomes one error that names both and the line.

    Errors that say what to do pass as they are, and hemlearn's own classes keep their tracebacks.

    Args:
        part: The object whose method is called inside.
        method: Its name.
        kind: Class of the error.

    Example:
        >>> from fractions import Fraction
        >>> with calling(Fraction(1), "__truediv__"):
        ...     Fraction(1) / 0
        Traceback (most recent call last):
        hemlearn.util.errors.DataError: ...
    """
    try:
        yield
    except HemlearnError:
        raise
    except (Exception, SystemExit) as error:
        cls = type(part)
        if f"{cls.__module__}.".startswith("hemlearn."):
            raise
        raise kind(
            f"{cls.__module__}.{cls.__qualname__}.{method} raised {type(error).__name__}: {error}{_line(error, cls)}",
            remedy=f"correct {method} of that class; the log of a run holds the traceback",
        ) from error


def _line(error: BaseException, part: Any) -> str:
    """Where it was raised: the last line of the part's own file, else the last of all."""
    file = getattr(sys.modules.get(getattr(part, "__module__", "")), "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
    return f" ({Path(last.filename).name}, line {last.lineno})"


_VAR_POSITIONAL = inspect.Parameter.VAR_POSITIONAL
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _fault(where: str, target: str, what: str, remedy: str) -> ConfigError:
    return ConfigError(f"{where}._target_={target!r}: {what}", remedy=remedy)


def _import(parts: list[str], where: str, target: str) -> tuple[ModuleType, list[str]]:
    """The longest importable module of a dotted name, and the rest of the name."""
    for count in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:count])
        try:
            return importlib.import_module(name), parts[count:]
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise _fault(
                    where, target, f"{name} needs {error.name}, which is not installed", f"install {error.name}"
                ) from error
            if count == 1:
                raise _fault(
                    where,
                    target,
                    f"cannot be imported (no package '{name}'{hint(name, _packages())})",
                    "use the dotted name of an importable class, and install its package in this environment",
                ) from error
        except HemlearnError as error:
            raise _fault(where, target, f"importing {name}: {error.problem}", error.remedy) from error
        except (Exception, SystemExit) as error:  # importing a stranger's module may raise anything
            raise _fault(
                where, target, f"importing {name} raised {type(error).__name__}: {error}", f"correct {name}"
            ) from error
    raise AssertionError(target)


def _submodules(place: Any) -> list[str]:
    return [item.name for item in pkgutil.iter_modules(getattr(place, "__path__", ()))]


@functools.cache
def _packages() -> dict[str, list[str]]:
    """Importable top-level names and the distributions they come from."""
    return dict(metadata.packages_distributions())


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """Parameters by name; None for built-in classes that do not say what they take."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None


def _names_of_bases(function: Callable[..., Any]) -> set[str] | None:
    """What the constructors of a class and of its bases name; None for a function, whose ``**kwargs`` takes all."""
    if not isinstance(function, type):
        return None
    own = (base.__dict__["__init__"] for base in function.__mro__ if "__init__" in base.__dict__ and base is not object)
    return {name for init in own for name in _parameters(init) or ()}


def _nested(value: Any, where: str) -> Any:
    if target_of(value) is not None:
        return resolve(value, where)
    if isinstance(value, Mapping):
        return {key: _nested(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple) or type(value).__name__ == "ListConfig":
        return [_nested(item, f"{where}[{index}]") for index, item in enumerate(value)]
    return value


# --- packages of the user's --------------------------------------------------------------------------------------


def _entry_points() -> tuple[tuple[str, str], ...]:
    """Name and ``module`` or ``module:object`` of the installed entry points, in the order of their names."""
    return _installed(tuple((place, _changed(place)) for place in sys.path))


def _changed(place: str) -> int:
    """When something was last installed there; 0 where there is nothing."""
    try:
        return Path(place).stat().st_mtime_ns
    except OSError:
        return 0


@functools.cache
def _installed(_places: tuple[tuple[str, int], ...]) -> tuple[tuple[str, str], ...]:
    """Every composition asks three times, and reading the metadata of all packages takes 10 ms."""
    return tuple(sorted((item.name, item.value) for item in metadata.entry_points(group=GROUP)))


def load_plugins(names: Iterable[str] = ()) -> None:
    """Import the packages named in ``plugins`` and those of the entry-point group ``hemlearn.plugins``, each once.

    Raises:
        ConfigError: One cannot be imported.
    """
    for name in names:
        _load(name, f"plugins=[{name}]")
    for name, value in _entry_points():
        _load(value.partition(":")[0].strip(), f"the entry point {name} ({value}) of group {GROUP}")


def _load(module: str, where: str) -> None:
    if module in sys.modules:
        return
    if not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"{where}: not the name of a package", remedy="write mypkg or mypkg.module")
    try:
        importlib.import_module(module)
    except HemlearnError as error:
        raise ConfigError(f"{where}: cannot be imported: {error.problem}", remedy=error.remedy) from error
    except (Exception, SystemExit) as error:  # importing a stranger's package may raise anything
        missing = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        near = hint(module, _packages()) if missing else ""
        raise ConfigError(
            f"{where}: cannot be imported ({type(error).__name__}: {error}{near})",
            remedy="install the package in this environment, or correct its name" if missing else f"correct {module}",
        ) from error


def plugin_conf_dirs(names: Iterable[str] = ()) -> list[Path]:
    """The ``conf`` folders that plug-ins ship, for Hydra's search path; none of them is imported for it."""
    modules = [*names, *(value.partition(":")[0].strip() for _, value in _entry_points())]
    found: dict[Path, None] = {}
    for module in modules:
        try:
            spec = importlib.util.find_spec(module.partition(".")[0])
        except (ImportError, ValueError):
            continue  # load_plugins says so
        for place in (spec.submodule_search_locations or ()) if spec else ():
            # mypkg.sub may have a folder of its own; that of mypkg serves all of its modules
            for folder in (Path(place, *module.split(".")[1:]), Path(place)):
                if (folder / "conf").is_dir():
                    found[folder / "conf"] = None
    return list(found)


# --- which code that is ------------------------------------------------------------------------------------------


def foreign_targets(tree: Any) -> list[str]:
    """Dotted names in every ``_target_`` below ``tree``, and modules in its ``plugins``, that are a stranger's code.

    Example:
        >>> foreign_targets({"loss": {"_target_": "mypkg.Loss", "base": {"_target_": "torch.nn.ReLU"}}})
        ['mypkg.Loss']
    """
    return list(_foreign(tree))


def _foreign(tree: Any) -> dict[str, str]:
    """The names of :func:`foreign_targets`, each with the key under which it stands first."""
    plugins = tree.get("plugins") if isinstance(tree, Mapping) else getattr(tree, "plugins", None)
    named = [*_targets(tree), *((str(name), "plugins") for name in plugins or ())]
    trusted = tuple(f"{place}." for place in TRUSTED)
    return {name: where for name, where in reversed(named) if not f"{name}.".startswith(trusted)}


def untrusted_targets(tree: Any) -> list[str]:
    """What a run made elsewhere may name only where it is trusted: foreign code, and whatever is no part of a network.

    A dotted name below a trusted package can still reach a shell (``torch.optim.optimizer.torch.os.system``), and a
    harmless class can be handed one: each name, nested ones too, must be a class of the known kinds in its own module.

    Example:
        >>> untrusted_targets([{"_target_": "torch.nn.ReLU"}, {"_target_": "torch.nn.utils.os.system"}])
        ['torch.nn.utils.os.system']
    """
    found = foreign_targets(tree)
    return found + [name for name in dict(_targets(tree)) if name not in found and not _harmless(name)]


def _harmless(target: str) -> bool:
    try:
        part = find(target, target)
    except ConfigError:
        return False  # what is not there now may be there once something else is imported
    if not isinstance(part, type) or not f"{part.__module__}.".startswith(tuple(f"{name}." for name in _HARMLESS)):
        return False
    return not _KINDS.isdisjoint(f"{base.__module__}.{base.__qualname__}" for base in part.__mro__)


def _targets(tree: Any, where: str = "") -> Iterable[tuple[str, str]]:
    """Dotted name and key of every node below ``tree``; whatever else stands in a ``_target_`` is no name of ours."""
    own = tree.get("_target_", tree.get("target_")) if isinstance(tree, Mapping) else getattr(tree, "target_", None)
    if own is not None:
        yield own if isinstance(own, str) else repr(own), where or str(own)
    if hasattr(type(tree), "model_fields"):
        tree = {**{key: getattr(tree, key) for key in type(tree).model_fields}, **(tree.model_extra or {})}
    if isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from _targets(item, f"{where}.{key}" if where else str(key))
    elif isinstance(tree, list | tuple):
        for index, item in enumerate(tree):
            yield from _targets(item, f"{where}[{index}]")


def fingerprints(tree: Any) -> dict[str, dict[str, str]]:
    """What a stranger's code named in ``tree`` is made of: ``{name: {"version": ..., "sha256": ...}}``.

    Checksums are those of a class's source with its base classes of the same package, of a function's source, or of
    all Python files of a plug-in named in ``plugins``. Parts registered under a name count where ``tree`` names them.

    Raises:
        ConfigError: Code that cannot be imported.
    """
    plugins = tree.get("plugins") if isinstance(tree, Mapping) else getattr(tree, "plugins", None)
    names = [str(name) for name in plugins or ()]
    found = {name: _print(name, _package_source(name)) for name in names}
    for target, where in _foreign(tree).items():
        if target not in found:
            found[target] = _print(target, _source(find(target, where)))
    for group, parts in REGISTRY.parts.items():
        node = tree.get(group) if isinstance(tree, Mapping) else getattr(tree, group, None)
        for one in node.values() if group in NAMED and isinstance(node, Mapping) else [node]:
            name = _name_of(one)
            part = parts.get(name)
            module = getattr(part, "__module__", "hemlearn")
            if part is not None and target_of(one) is None and foreign_targets({"plugins": [module]}):
                found[f"{group}={name}"] = _print(module, _source(part))
    return found


def _print(name: str, source: bytes) -> dict[str, str]:
    return {"version": _version(name), "sha256": sha256(source)}


def _version(name: str) -> str:
    top = name.partition(".")[0]
    for distribution in (top, *_packages().get(top, ())):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return str(getattr(sys.modules.get(top), "__version__", "unknown"))


def _source(part: Any) -> bytes:
    if isinstance(part, functools.partial):
        part = part.func
    top = part.__module__.partition(".")[0]
    pieces = [part]
    if isinstance(part, type):
        pieces = [cls for cls in part.__mro__ if cls.__module__.partition(".")[0] == top]
    try:
        return "\n".join(inspect.getsource(piece) for piece in pieces).encode()
    except (OSError, TypeError):  # compiled, or typed into a console
        file = getattr(sys.modules.get(part.__module__), "__file__", None)
        return Path(file).read_bytes() if file else repr(part.__qualname__).encode()


def _package_source(name: str) -> bytes:
    _load(name, f"plugins=[{name}]")
    module = sys.modules[name]
    places = list(getattr(module, "__path__", ())) or [module.__file__ or ""]
    files = sorted(
        f for place in places for f in ([Path(place)] if place.endswith(".py") else Path(place).rglob("*.py"))
    )
    return b"\n".join(str(file.name).encode() + b"\n" + file.read_bytes() for file in files)


# --- parts by name -----------------------------------------------------------------------------------------------


class Registry:
    """Parts by group and name: those that hemlearn ships and those that plug-ins add.

    Example:
        >>> registry = Registry()
        >>> @registry.register("loss", "hinge")
        ... def hinge(logits, labels): ...
        >>> registry.get("loss", "hinge") is hinge, registry.names("loss")
        (True, ['hinge'])
    """

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, Any]] = {}

    def register(self, group: str, name: str) -> Callable[[T], T]:
        """Decorator that puts a class or function under ``name`` in ``group``.

        Raises:
            ConfigError: Another part has that name, or hemlearn ships one.
        """

        def put(part: T) -> T:
            there = self.parts.setdefault(group, {}).get(name)
            if (_CONF / group.replace("optimizer.schedule", "schedule") / f"{name}.yaml").is_file():
                raise ConfigError(
                    f"{group}={name}: {_address(part)} would take the name of a part that hemlearn ships",
                    remedy="register it under another name",
                )
            if there is not None and _address(there) != _address(part):
                raise ConfigError(
                    f"{group}={name}: {_address(part)} would take the name of {_address(there)}",
                    remedy="register it under another name",
                )
            self.parts[group][name] = part
            return part

        return put

    def get(self, group: str, name: str) -> Any:
        """The part of that name.

        Raises:
            ConfigError: There is none; names the nearest.
        """
        try:
            return self.parts.get(group, {})[name]
        except KeyError as error:
            names = self.names(group)
            raise ConfigError(
                f"{group}.name={name!r}: no such part{hint(name, names)}", remedy=f"use one of {', '.join(names)}"
            ) from error

    def names(self, group: str) -> list[str]:
        """The names of a group, in the order in which they were registered."""
        return list(self.parts.get(group, {}))


def _name_of(node: Any) -> str:
    """The name that a name, an option object or a mapping calls a part by."""
    found = node.get("name") if isinstance(node, Mapping) else getattr(node, "name", None)
    return node if isinstance(node, str) else str(found)


def _address(part: Any) -> str:
    return f"{getattr(part, '__module__', '')}.{getattr(part, '__qualname__', repr(part))}"


_PACKAGE = Path(__file__).resolve().parent
_CONF = next(place for place in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if place.is_dir())
REGISTRY = Registry()
register = REGISTRY.register


def supplied(part: Any, where: str, *, kind: type | tuple[type, ...], **offered: Any) -> Any:
    """A user's own part, whichever way it is given; None where ``part`` names or describes a shipped one.

    Args:
        part: An instance of ``kind``; a class or function that makes one; an option object or mapping with
            ``_target_``; a name, or an option object or mapping with the name, under which a plug-in has registered
            one.
        where: Its group, for messages and registered names; ``metrics.NAME`` in a group of several.
        kind: Class, or classes, of the result.
        offered: What hemlearn supplies where the signature takes it.

    Raises:
        ConfigError: As :func:`resolve`.
    """
    if target_of(part) is not None:
        return resolve(part, where, kind=kind, **offered)
    if isinstance(part, kind):
        return part
    registered = REGISTRY.parts.get(where.partition(".")[0], {}).get(_name_of(part))
    if registered is not None and isinstance(part, Mapping):  # all of its keys are arguments
        given = {str(key): _nested(value, f"{where}.{key}") for key, value in part.items() if key not in _LABELS}
        return call(registered, where, given, kind=kind, **offered)
    if registered is not None:
        keys = {} if isinstance(part, str) else {k: v for k, v in vars(part).items() if k not in _LABELS}
        return call(registered, where, {}, kind=kind, **{**keys, **offered})
    return call(part, where, {}, kind=kind, **offered) if callable(part) else None
