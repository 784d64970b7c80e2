"""Stoker for training scripts: report what a run does. Outside a Stoker run all of this does nothing.

import stoker
stoker.log_params({"lr": 1e-4})
stoker.log_metric("loss", 0.31, step=10)
stoker.log_artifact("confusion.png")
"""

from stoker.tracking import checkpoint, is_active, log_artifact, log_metric, log_params

__version__ = "0.1.0"
__all__ = ["checkpoint", "is_active", "log_artifact", "log_metric", "log_params"]
