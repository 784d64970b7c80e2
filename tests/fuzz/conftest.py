"""How long hypothesis looks: ``STOKER_FUZZ_EXAMPLES`` examples of each test, where that is set (``make fuzz`` does)."""

from __future__ import annotations

import os

from hypothesis import settings

if "STOKER_FUZZ_EXAMPLES" in os.environ:
    examples = int(os.environ["STOKER_FUZZ_EXAMPLES"])
    settings.register_profile("fuzz", settings.get_profile("patient"), max_examples=examples)
    settings.load_profile("fuzz")
