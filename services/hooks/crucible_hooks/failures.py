"""What can go wrong in a run, as exceptions whose text is the reason that the run's record keeps."""


class RunError(Exception):
    """This attempt has failed."""


class AbsentError(RunError):
    """An expression or a script reads a field or an element that is not there."""
