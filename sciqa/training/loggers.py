"""Log training figures to TensorBoard and MLflow."""

import tempfile

from sciqa.core import storage
from sciqa.training.options import FinetuneOptions


class MetricLoggers:
    """Writes figures to TensorBoard and, if asked, to MLflow; does nothing except on rank 0."""

    def __init__(self, options: FinetuneOptions, rank: int) -> None:
        self.board = self.mlflow = None
        if rank == 0:
            from tensorboardX import SummaryWriter

            self.folder = storage.join_paths(options.folder, "tensorboard")
            self.local = tempfile.mkdtemp() if "://" in self.folder else self.folder
            self.board = SummaryWriter(self.local)
            if options.mlflow:
                import mlflow

                self.mlflow = mlflow
                mlflow.start_run(run_name=options.name)

    def write(self, row: dict) -> None:
        """Log the figures of a history row."""
        figures = {name: value for name, value in row.items() if name != "step"}
        if self.board:
            for name, value in figures.items():
                self.board.add_scalar(name, value, row["step"])
            if "validation_loss" in row and self.local != self.folder:
                self.board.flush()
                storage.copy_files(self.local, self.folder)
        if self.mlflow:
            self.mlflow.log_metrics(figures, step=row["step"])

    def close(self) -> None:
        """Write buffered figures and close the logs."""
        if self.board:
            self.board.close()
        if self.mlflow:
            self.mlflow.end_run()


def logged_measure(options: FinetuneOptions) -> str:
    """Return the name of the validation figure that selects the best step of an objective."""
    return "reward" if options.objective == "grpo" else "loss"


def logged_history_row(logged: dict) -> dict:
    """Return the row of the history for what a trainer of transformers logs; {} for its summary of the whole run."""
    if not {"loss", "eval_loss"} & logged.keys():
        return {}
    unwanted = ("epoch", "_runtime", "_per_second")
    return {name.replace("eval_", "validation_", 1): x for name, x in logged.items() if not name.endswith(unwanted)}
