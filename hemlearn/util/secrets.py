"""Passwords and tokens in what is written, logged or said: masked here, and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

MASK = "***"
_WORDS = r"[\w.-]{0,64}(?:password|passwort|kennwort|passwd|passphrase)"
_KEYS = r"secret|secret_?key|api_?key|access_?key|private_?key"
# conv_pw is a layer of many networks, db_pw a password.
_NAMES = (
    rf"(?:{_WORDS}|(?:[\w.-]{{0,64}}[_.-])?(?:(?<=[_.-])(?:pass|pwd)|(?:(?<![\w.-])|(?<=[_.-])(?<!conv[_.-]))pw|{_KEYS}"
    r"|token|auth_?key|credentials?|authorization|bearer))"
)
_NAME = re.compile(_NAMES, re.IGNORECASE)
# token=true, tokens=4: an option of a network; what is masked stays as it is
_PLAIN = r"(?!(?:true|false|null|none)\b|\d{1,4}\b|(?:(?:bearer|basic)\s+)?\*\*\*)"
_QUOTED = r"\"[^\"\n]*\"|'[^'\n]*'"
# What one of them matches has a limit, or begins at a word's start: long texts take no more than their length.
_RULES = (
    # scheme://user:password@host, where a password may hold further @
    (re.compile(r"(?<=://)(?:[^\s/'\"]{1,1000}|[^\s/:'\"]{1,1000}:[^\s'\"]{0,1000})@"), f"{MASK}@"),
    (
        re.compile(
            rf"(?<![\w])({_NAMES}['\"]?\s*(?:[=-]>|[=:])\s*(?:(?:bearer|basic)\s+)?){_PLAIN}"
            rf"({_QUOTED}|[^\s,;&'\"\]}})]+)",
            re.I,
        ),
        rf"\1{MASK}",
    ),
    # --password X; WANDB_API_KEY X; wandb login X; machine A login B password X
    (re.compile(rf"(?<![\w-])(--?{_NAMES}\s+){_PLAIN}({_QUOTED}|[^\s'\"-]\S*)", re.I), rf"\1{MASK}"),
    (re.compile(rf"(?<![\w])({_NAMES}\s+)(?=[a-z]{{0,200}}\d)[a-z0-9]{{20,}}\b", re.I), rf"\1{MASK}"),
    (re.compile(r"(\blogin\s+)[0-9a-f]{40}\b", re.I), rf"\1{MASK}"),
    (re.compile(rf"(\b(?:machine|login)\s+\S{{1,200}}\s+(?:password|passwd|psw)\s+){_PLAIN}\S+", re.I), rf"\1{MASK}"),
    # <password>X</password>; "password","X" (names of tensors stand in such lists too: cls_token)
    (re.compile(rf"(<{_NAMES}(?:\s[^<>]{{0,200}})?>)(?!\*\*\*)[^<]{{1,1000}}(?=</)", re.I), rf"\1{MASK}"),
    (
        re.compile(
            rf"(['\"](?:{_WORDS}|(?:[\w.-]{{0,64}}[_.-])?(?:{_KEYS}))['\"]\s*,\s*)"
            r"(?=['\"][^'\"\s]{0,200}[^'\"\sa-z_.])['\"][^'\"\s]{4,200}['\"]",
            re.I,
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"(\bcookie['\"]?\s*:\s*['\"]?[^\s=;,'\"]{1,200}=)(?!\*\*\*)[^\r\n'\"]+", re.I), rf"\1{MASK}"),
    (re.compile(r"\b(?:hf|gh[opsu]|github_pat|glpat|sk|wandb_v1)[_-][A-Za-z0-9_-]{20,}"), MASK),
    (re.compile(r"(?<![\w-])(?:xox[a-z]-[\w-]{10,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|AIza[\w-]{35}(?![\w-]))"), MASK),
    (re.compile(r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|npm_[A-Za-z0-9]{36})\b"), MASK),
    (re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.S), MASK),
)
# Of each rule, in small letters, what stands in whatever it masks.
HINTS = (
    *("://", "pass", "pwd", "secret", "token", "api_key", "apikey", "access_key", "accesskey", "private_key"),
    *("privatekey", "auth_key", "authkey", "credential", "authorization", "bearer", "hf_", "hf-", "gho", "ghp", "ghs"),
    *("kennwort", "pw=", "pw:", "pw ", "pw'", 'pw"', "pw-", "login", "cookie", "xox", "eyj", "aiza", "npm_"),
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


@lru_cache(maxsize=4096)
def _named(name: str) -> bool:  # asked of every variable for every line that is logged
    return bool(_NAME.fullmatch(name))


def _is_file(value: str) -> bool:
    try:
        return "/" in value and Path(value).exists()
    except OSError:  # too long for a name
        return False


def of_environment() -> list[str]:
    """Values of environment variables that are called like a secret, the longest first."""
    named = [value for name, value in os.environ.items() if _named(name)]
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
