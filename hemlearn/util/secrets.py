"""Passwords and tokens in what is written, logged or said: masked here, and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MASK = "***"
_NAMES = (
    r"(?:[\w.-]{0,64}(?:password|passwd|passphrase)|(?:[\w.-]{0,64}[_.-])?(?:(?<=[_.-])(?:pass|pwd)|secret|secret_?key"
    r"|token|api_?key|access_?key|private_?key|auth_?key|credentials?|authorization|bearer))"
)
_NAME = re.compile(_NAMES, re.IGNORECASE)
_PLAIN = r"(?!(?:true|false|null|none)\b|\d{1,4}\b|\*\*\*)"  # token=true, tokens=4: an option of a network
_QUOTED = r"\"[^\"\n]*\"|'[^'\n]*'"
_RULES = (
    # scheme://user:password@host, where a password may hold further @
    (re.compile(r"(?<=://)(?:[^\s/'\"]+|[^\s/:'\"]+:[^\s'\"]*)@"), f"{MASK}@"),
    (
        re.compile(
            rf"(?<![\w])({_NAMES}['\"]?\s*[=:]\s*(?:(?:bearer|basic)\s+)?){_PLAIN}({_QUOTED}|[^\s,;&'\"\]}})]+)", re.I
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(?:hf|gh[opsu]|github_pat|glpat|sk|wandb_v1)[_-][A-Za-z0-9_-]{20,}"), MASK),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), MASK),
    (re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.S), MASK),
)
# Of each rule, in small letters, what stands in whatever it masks.
HINTS = (
    *("://", "pass", "pwd", "secret", "token", "api_key", "apikey", "access_key", "accesskey", "private_key"),
    *("privatekey", "auth_key", "authkey", "credential", "authorization", "bearer", "hf_", "hf-", "gho", "ghp", "ghs"),
    *("ghu", "github_pat", "glpat", "sk_", "sk-", "wandb_v1", "akia", "asia", "private key-"),
)
_LEAST = 8  # letters of a secret in an environment variable; fewer may be any word


def mask(text: str) -> str:
    """A text with passwords and tokens as ``***``.

    These are what stands before the ``@`` of an address, after a key that is called so (``token=``, ``api_key:``), what
    has the form of a well-known token, and the values of environment variables that are called so.

    >>> mask("tracking_uri=https://jane:a@b@host/x?token=abc, dropout=0.5")
    'tracking_uri=https://***@host/x?token=***, dropout=0.5'
    """
    text = _by_rules(text)
    for value in of_environment():
        text = text.replace(value, MASK)
    return text


def _by_rules(text: str) -> str:
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    return text


def holds_secret(text: str) -> bool:
    """Whether :func:`mask` would take something out of a text, the values of environment variables aside."""
    return _by_rules(text) != text


def is_secret_name(text: str) -> bool:
    """Whether a key is called like a secret: ``password``, ``api_key`` ..."""
    return len(text) < 100 and bool(_NAME.fullmatch(text))


def _is_file(value: str) -> bool:
    try:
        return "/" in value and Path(value).exists()
    except OSError:  # too long for a name
        return False


def of_environment() -> list[str]:
    """Values of environment variables that are called like a secret, the longest first."""
    named = [value for name, value in os.environ.items() if _NAME.fullmatch(name)]
    # A file is no secret, but where one lies.
    found = [value for value in named if len(value) >= _LEAST and not _is_file(value)]
    return sorted(found, key=len, reverse=True)


def _hidden(value: Any) -> Any:
    """What stands under a key that is called like a secret; true, null and small numbers are options of a network."""
    if isinstance(value, Mapping):
        return {key: _hidden(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_hidden, value))
    return MASK if value and not isinstance(value, bool) and not (isinstance(value, int) and value < 10_000) else value


def masked(value: Any) -> Any:
    """All texts of a tree by :func:`mask`, and the text of every key that is called like a secret."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {key: _hidden(item) if _NAME.fullmatch(str(key)) else masked(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(masked, value))
    return value
