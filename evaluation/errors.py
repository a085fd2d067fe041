"""The one error of this room."""


class EvaluationError(Exception):
    """A score that cannot be computed honestly: the message says what was found, what was expected, what to do."""
