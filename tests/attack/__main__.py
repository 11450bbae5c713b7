"""``python -m tests.attack``."""

from __future__ import annotations

import sys

from tests.attack.run import main

sys.exit(main())
