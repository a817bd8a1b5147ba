"""The run file of a trial, to run it in full."""

from __future__ import annotations

from pathlib import Path

from fednc.common.errors import ConfigError
from fednc.common.files import write_atomically
from fednc.common.toml_text import to_toml
from fednc.ops.search.plan import SearchPlan, run_file_of
from fednc.ops.search.space import put, without_unset
from fednc.ops.search.study import TrialView


def write_run_file(plan: SearchPlan, trial: TrialView, path: Path) -> None:
    """Write the run file that the search names, with the trial's settings. `[set]` holds for trials only.

    Raises:
        ConfigError: the settings fit the trials, but not the run file without `[set]`.
    """
    values = without_unset(run_file_of(plan), plan.space, trial.settings)
    for key, value in trial.settings.items():
        put(values, key, value)
    plan.space.apply(values, trial.settings, source=f"the run file with the settings of trial {trial.number}")
    heading = f"# {Path(plan.file.run).name} with the settings of trial {trial.number} of search {plan.name}\n"
    try:
        write_atomically(path, (heading + to_toml(values)).encode(), mode=0o644)
    except OSError as e:
        raise ConfigError(f"{path} cannot be written: {e.strerror}") from e
