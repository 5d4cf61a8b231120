"""The error that a user can mend."""


class UserError(ValueError):
    """A config, a data set, a model or a file that cannot be used. The message names it and says what to do.

    Programs show only the message; any other error is a defect and keeps its traceback.
    """
