"""Runs a command in this process on its real config."""

from hydra import compose, initialize_config_dir

from pipelines.command import CONFIGS, execute


def config(name, *overrides):
    """configs/<name>.yaml with overrides."""
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose(name, list(overrides))


def run(command, name, *overrides):
    """The summary of a command on its config."""
    return execute(command.main.function, config(name, *overrides))
