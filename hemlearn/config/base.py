"""What the groups of the configuration and the requests of commands share: typed fields, rules, all errors at once.

A rule of one field stands in its annotation (``Field(ge=0)``, :func:`one_of`); a rule of several is a function
marked with :func:`rule`, whose parameters name the fields that it reads. Every object is checked when it is made, also
in a notebook, and its :class:`ConfigError` lists all that is wrong with it.
"""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from hemlearn.util.errors import CallError, ConfigError, count, hint


class Problem(NamedTuple):
    """One error: the key, and the line that says what is wrong with it."""

    key: str
    text: str


class Wrong(NamedTuple):
    """What a rule finds: the key inside its group, the value there and what would be right."""

    key: str
    value: Any
    text: str


Found = Iterator[Wrong]
_TYPES = {  # first word of pydantic's error type -> what was expected
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of keys to values",
    "path": "a file name",
    "finite": "a finite number",
}


def key(default: Any, text: str, **limits: Any) -> Any:
    """A field with its default, its meaning and its limits (``ge``, ``gt``, ``le``, ``lt``, ``alias`` ...)."""
    return Field(default, description=text, **limits)


def one_of(*choices: str, more: Callable[[], Iterable[str]] = tuple) -> AfterValidator:
    """A field that takes one of some words; ``more`` is asked for further ones before a word is refused."""

    def check(value: str) -> str:
        if value not in choices:
            known = [*choices, *more()]
            if value not in known:
                text = f"expected one of {', '.join(known)}{hint(str(value), known)}"
                raise PydanticCustomError("rule", "{text}", {"text": text})
        return value

    check.choices = choices  # type: ignore[attr-defined]  # for who lists them, such as the documentation
    return AfterValidator(check)


def rule(function: Callable[..., Found]) -> Any:
    """Mark a function of some fields that yields a :class:`Wrong` for each thing wrong with them."""
    function.reads = tuple(inspect.signature(function).parameters)  # type: ignore[attr-defined]
    return staticmethod(function)


def raise_problems(problems: Sequence[Problem], what: str, remedy: str, kind: type[ConfigError] = ConfigError) -> None:
    """Raise one ``kind`` of :class:`ConfigError` with a line for each problem, if there are any."""
    lines = list(dict.fromkeys(problem.text for problem in problems))
    if lines:
        raise kind(
            "\n".join([f"{count(len(lines), 'error')} in {what}:", *(f"  - {line}" for line in lines)]), remedy=remedy
        )


class Checked(BaseModel):
    """A pydantic model that lists all of its errors in one :class:`ConfigError`, with the nearest names."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True, populate_by_name=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        raise_problems(self._fill(values, self.prefix()), self.what(), self.remedy())

    @classmethod
    def prefix(cls) -> str:
        """What stands before its keys in messages."""
        return ""

    @classmethod
    def what(cls) -> str:
        """Where the errors are."""
        return "the configuration"

    @classmethod
    def remedy(cls) -> str:
        """What the user can do about them."""
        return "correct the keys above; `hemlearn train --cfg job` prints every key with its value"

    @classmethod
    def attempt(
        cls, values: Mapping[str, Any], prefix: str = "", rules_of: set[str] | None = None
    ) -> tuple[Self, list[Problem]]:
        """The object, and all that is wrong with it; the object may be used only where nothing is.

        Args:
            values: By key.
            prefix: What stands before the keys in messages.
            rules_of: Hold them only against rules that read nothing else than these fields; None: against all.
        """
        made = cls.__new__(cls)
        return made, made._fill(values, prefix, rules_of)

    @classmethod
    def key_names(cls) -> list[str]:
        """Names of its fields as they are written."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    def _fill(self, given: Mapping[str, Any], prefix: str, rules_of: set[str] | None = None) -> list[Problem]:
        cls = type(self)
        values = {str(key): value for key, value in given.items()}
        problems: list[Problem] = []
        bad: set[str] = set()
        names = {key: name for name, field in cls.model_fields.items() for key in (name, field.alias or name)}
        names.pop("target_", None)  # no other way to write `_target_`: whoever looks for foreign code looks for that
        free = "_target_" in names and values.get("_target_")  # a class of the user's has keys of its own
        for key in [key for key in values if key not in names and (key == "target_" or not free)]:
            problems.append(Problem(f"{prefix}{key}", f"unknown key '{prefix}{key}'{cls.near(prefix, key)}"))
            del values[key]
        for key in [key for key in values if key in names]:
            kind, value = cls.model_fields[names[key]].annotation, values[key]
            text = None
            if isinstance(kind, type) and issubclass(kind, Checked) and not isinstance(value, kind):
                if isinstance(value, Mapping):
                    values[key], more = kind.attempt(value, f"{prefix}{key}.")
                    problems += more
                    bad |= {key} if more else set()
                else:
                    text = "expected a group of keys, not a value"
            elif isinstance(value, bool) and kind in _NUMBERS:
                text = f"expected {_TYPES['int' if kind in _NUMBERS[:2] else 'float']}"
            elif isinstance(value, int) and kind in _NUMBERS and abs(value) > _LARGEST:
                text = f"at most {_LARGEST}"
            elif isinstance(value, str) and not value.strip() and _needs_text(cls.model_fields[names[key]]):
                text = "expected text; leave the key out, or give null where its default is null"
            if text or key in bad:
                problems += [cls.problem(f"{prefix}{key}", value, text)] if text else []
                bad.add(key)
                del values[key]
        try:
            self.__pydantic_validator__.validate_python(values, self_instance=self)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                problems.append(self._problem(item, prefix))
                bad.add(str(item["loc"][0]))
            try:  # what is right is still held against the rules
                self.__pydantic_validator__.validate_python(
                    {key: value for key, value in values.items() if key not in bad}, self_instance=self
                )
            except ValidationError:  # something required is missing
                return problems
        bad |= {names[key] for key in bad if key in names}
        for function in self._rules():
            if not bad.intersection(function.reads) and (rules_of is None or rules_of.issuperset(function.reads)):
                for key, value, text in function(*(getattr(self, name) for name in function.reads)):
                    problems.append(cls.problem(f"{prefix}{key}", value, text))
        return problems

    @classmethod
    def problem(cls, key: str, value: Any, text: str) -> Problem:
        """The error of one value."""
        return Problem(key, f"{key}={value!r}: {text}")

    @classmethod
    def near(cls, prefix: str, key: str) -> str:
        """The nearest key to one that does not exist, as the end of a message."""
        return hint(f"{prefix}{key}", [f"{prefix}{name}" for name in cls.key_names()])

    @classmethod
    def _rules(cls) -> Iterator[Any]:
        for base in reversed(cls.__mro__):
            for item in vars(base).values():
                if isinstance(item, staticmethod) and hasattr(item.__func__, "reads"):
                    yield item.__func__

    @classmethod
    def _problem(cls, item: Any, prefix: str) -> Problem:
        """A line for one error of pydantic's."""
        field = next((f for name, f in cls.model_fields.items() if item["loc"][0] in (name, f.alias)), None)
        key = prefix + str(item["loc"][0])
        for part in item["loc"][1:]:
            key += f"[{part}]" if isinstance(part, int) else "" if part == "[key]" else f".{part}"
        kind = item["type"]
        if kind == "missing":
            about = field.description if field else ""
            free = key == getattr(cls, "free", None)
            return Problem(
                key, f"no {key} given ({about})" if free else f"{key} is not set: give {key}=VALUE ({about})"
            )
        if kind == "rule":
            text = item["ctx"]["text"]
        elif kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal") and field is not None:
            text = _range(field)
        else:
            text = f"expected {_TYPES.get(kind.partition('_')[0], item['msg'])}"
        return cls.problem(key, item["input"], text)


_NUMBERS = (int, int | None, float, float | None)
_LARGEST = 4_294_967_295  # whole number: more is a slip of the hand, and torch's own counters end there


def _needs_text(field: Any) -> bool:
    """Whether a field takes text that an empty one cannot stand for."""
    kinds = {
        typing.get_args(part)[0] if typing.get_origin(part) is Annotated else part
        for part in (typing.get_args(field.annotation) or (field.annotation,))
    }
    return str in kinds and field.default != ""


def _range(field: Any) -> str:
    """What a number has to be, from its field's limits."""
    limits = {type(item).__name__.lower(): getattr(item, type(item).__name__.lower()) for item in _limits(field)}
    low = limits.get("ge", limits.get("gt"))
    high = limits.get("le", limits.get("lt"))
    if high is None:
        return "0 or more" if limits == {"ge": 0} else f"at least {low:g}" if "ge" in limits else f"above {low:g}"
    if "gt" in limits and "lt" in limits:
        return f"strictly between {low:g} and {high:g}"
    return f"in {'[' if 'ge' in limits else '('}{low:.10g}, {high:.10g}{']' if 'le' in limits else ')'}"


def _limits(field: Any) -> list[Any]:
    found = [item for item in field.metadata if type(item).__name__ in ("Ge", "Gt", "Le", "Lt")]
    for part in typing.get_args(field.annotation):  # of Annotated[float, ...] | None
        found += [item for item in getattr(part, "__metadata__", ()) for item in getattr(item, "metadata", [item])]
    return found


# --- requests of commands ----------------------------------------------------------------------------------------


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _true_or_false(value: Any) -> Any:
    if isinstance(value, str) and value.lower() not in ("true", "false"):
        raise PydanticCustomError("rule", "{text}", {"text": "expected true or false"})
    return value


Flag = Annotated[bool, BeforeValidator(_true_or_false)]  # true or false, not 1 or yes
Words = Annotated[tuple[str, ...], BeforeValidator(_split)]  # a,b,c
Place = Annotated[str, AfterValidator(os.path.expanduser)]  # the same as text
Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser())]  # a file or folder; ~ is the home folder


class Request(Checked):
    """What a command is asked for: ``key=value`` arguments, described by the fields.

    Subclasses are frozen models; a field without default has to be given. ``argv`` is read by :meth:`parse`, the help
    text is written by :meth:`options`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    command: ClassVar[str] = ""
    free: ClassVar[str | None] = None  # field that takes the arguments without `=`
    passed: ClassVar[tuple[str, ...]] = ()  # configuration keys that go to `overrides` with all below them; *: any

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Self:
        """The request of a command line.

        Raises:
            CallError: Lists every argument that is malformed, unknown (with the nearest key), wrong or missing.
        """
        values: dict[str, Any] = {}
        overrides: list[str] = []
        words: list[str] = []
        problems: list[Problem] = []
        keys = [key for key in cls.key_names() if key not in ("overrides", cls.free)]
        tuples = [name for name, field in cls.model_fields.items() if isinstance(field.default, tuple)]
        for text in argv:
            key, equals, value = text.partition("=")
            if equals and key in keys:
                if value not in ("", "null"):  # as if it were not there
                    values[key] = value
                elif key in tuples:
                    values[key] = ()
            elif equals and ("*" in cls.passed or key.partition(".")[0] in cls.passed):
                overrides.append(text)
            elif cls.free and (not equals or Path(text).exists()):
                words.append(text)
            elif not equals:
                problems.append(Problem(text, f"{text!r}: not of the form key=value"))
            else:
                problems.append(Problem(key, f"unknown key '{key}'{hint(key, [*keys, *cls.passed])}"))
        values |= {cls.free: words} if cls.free and words else {}
        values |= {"overrides": overrides} if overrides else {}
        made, more = cls.attempt(values)
        raise_problems([*problems, *more], cls.what(), cls.remedy(), CallError)
        return made

    @classmethod
    def what(cls) -> str:
        """The command."""
        return f"hemlearn {cls.command}"

    @classmethod
    def remedy(cls) -> str:
        """Its help."""
        return f"hemlearn {cls.command} --help explains the keys and shows examples"

    @classmethod
    def problem(cls, key: str, value: Any, text: str) -> Problem:
        """As the user wrote it."""
        return Problem(key, f"{key} is not set: {text}" if value is None else f"{key}={value}: {text}")

    @classmethod
    def options(cls) -> str:
        """A line for each key, with its default and what it means."""
        lines = []
        for name, field in cls.model_fields.items():
            if name not in ("overrides", cls.free):
                default = "" if field.is_required() or field.default is None else _written(field.default)
                lines.append((f"{field.alias or name}={default}", field.description or ""))
        width = min(max(len(key) for key, _ in lines), 22) if lines else 0
        return "\n".join(_wrapped(key, text, width) for key, text in lines)


def _written(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _wrapped(key: str, text: str, width: int) -> str:
    import textwrap

    return textwrap.fill(f"  {key:{width}}  {text}", 120, subsequent_indent=" " * (width + 4), drop_whitespace=True)
