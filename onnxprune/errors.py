"""What can go wrong, said so that a reader knows what to do: what, where, why, what to try."""

from typing import ClassVar


class PruneError(Exception):
    """Base of every error that onnxprune raises on purpose.

    `what` happened, `where` (file, node, tensor, option), `why`, and a `hint` at what to try.
    `exit_code` is what the command line ends with.
    """

    exit_code: ClassVar[int] = 1
    report: object | None = None
    """What is known about the run that ended here, where a report could still be made."""

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        rest = (("where", self.where), ("why", self.why), ("try", self.hint))
        return "\n".join([self.what, *(f"  {label}: {text}" for label, text in rest if text)])


class CheckFailed(PruneError):
    """A check said no: verification, an accuracy floor, a target that can't be reached."""

    exit_code = 1


class UsageError(PruneError):
    """The request itself makes no sense."""

    exit_code = 2


class Unreadable(PruneError):
    """A model, plan or data file can't be read, or holds what is not supported."""

    exit_code = 3


class NothingToPrune(PruneError):
    """No channel could be removed, or everything rounds to nothing."""

    exit_code = 4


class OutOfMemory(PruneError):
    """A model, or what it computes, does not fit into memory."""

    def __init__(self, why: str) -> None:
        super().__init__(
            "out of memory", why=why, hint="smaller sizes with --dim batch=1 or --shape"
        )


class MissingRuntime(Unreadable):
    """ONNX Runtime is needed and not installed."""

    def __init__(self, why: str | None = None) -> None:
        super().__init__(
            "ONNX Runtime is not installed",
            why=why,
            hint="pip install 'onnxprune[cpu]'  or  pip install 'onnxprune[gpu]'",
        )
