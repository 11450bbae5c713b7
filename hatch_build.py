"""Build hook: the ``conf`` tree travels inside the wheel; an editable install reads the checkout's own."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ConfHook(BuildHookInterface):  # type: ignore[misc]
    """Places ``conf/`` at ``hemlearn/conf/`` in a wheel meant for installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling; ``version`` is ``editable`` for a development install."""
        if version == "standard":
            build_data["force_include"]["conf"] = "hemlearn/conf"
