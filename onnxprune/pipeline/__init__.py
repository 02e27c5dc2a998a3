"""The verbs: load, analyze, slim, apply, verify. The only place where the rooms meet."""

from onnxprune.pipeline.analysis import Analysis, Sizes, analyze, source_of
from onnxprune.pipeline.outcome import Result, describe, with_out, with_pictures
from onnxprune.pipeline.replaying import apply, replay, verify
from onnxprune.pipeline.run import others
from onnxprune.pipeline.slimming import slim, slim_dead

__all__ = [
    "Analysis", "Result", "Sizes", "analyze", "apply", "describe", "others", "replay", "slim",
    "slim_dead", "source_of", "verify", "with_out", "with_pictures",
]  # fmt: skip
