"""What ends a training before its time."""


class TrainingError(RuntimeError):
    """The training cannot go on, said in one line: a loss that is no number, a checkpoint of another training."""
