"""Verifiers in code: checks of a completion that need no model.

From below upwards: `languages`, `ifeval` and `stated`, `checks`.
"""

from rlaif.judges.verifiers.checks import (
    KINDS,
    Check,
    Outcome,
    all_pass,
    checks_of_ifeval,
    share_passed,
    verify,
)

__all__ = ["KINDS", "Check", "Outcome", "all_pass", "checks_of_ifeval", "share_passed", "verify"]
