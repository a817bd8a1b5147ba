"""The `fednc` command: its subcommands by name, its exit codes, and the one place where errors are reported.

Entry point of the distribution. A subcommand's module is imported only when it is called, so that `fednc --help`
answers at once; this file must not import torch or flwr.
"""

from __future__ import annotations

import os
from importlib import import_module, metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fednc.cli.output import say_error
from fednc.cli.sink import drain_console, guard_console
from fednc.common import fault_injection
from fednc.common.errors import EXIT_INTERRUPTED, FedncError, of_system
from fednc.common.process.flower_env import quiet_flower
from fednc.common.process.interrupt import end_at_once_while_loading, interrupt_as_usual

# name: (module:attribute, one line for --help); the attribute is a function with typer annotations or a typer app.
COMMANDS = {
    "server": ("fednc.cli.server:command", "Serve one run to its end."),
    "client": ("fednc.cli.client:command", "Take part in a federation with this machine's data and device."),
    "demo": ("fednc.cli.demo:command", "Run one server and four clients on this machine: fedavg, then fednc."),
    "status": ("fednc.cli.status:command", "Show the state of a run; pause, resume or stop it, drop a node."),
    "console": ("fednc.cli.console:command", "Open a web page to watch and operate a run."),
    "session": ("fednc.cli.session:app", "Start the next session of a run whose classes come later."),
    "certs": ("fednc.cli.certs:command", "Make and revoke certificates and tokens."),
    "init": ("fednc.cli.init:command", "Write a commented run file to start from."),
    "inspect": ("fednc.cli.inspect:app", "Look inside a model: gradients of the branches of its attention."),
    "check": ("fednc.cli.check:command", "Validate a run file and data without a server."),
    "runs": ("fednc.cli.runs:app", "List the runs in a folder, and compare them."),
    "export": (
        "fednc.cli.export:command",
        "Take a model elsewhere: ONNX, torch.export, safetensors, a model card.",
    ),
    "gates": ("fednc.cli.approve:gates", "Show what waits for a person's verdict."),
    "approve": ("fednc.cli.approve:approve", "Let a gate pass: approve the digest that you saw."),
    "reject": ("fednc.cli.approve:reject", "Keep a gate shut: reject the digest that you saw."),
    "models": ("fednc.cli.models:app", "Versions of models: register, list, aliases, checks, lineage."),
    "pipeline": ("fednc.cli.pipeline:app", "From the check of a run to the served model, step by step."),
    "predict": ("fednc.cli.predict:command", "Predict with the model of a finished run."),
    "queue": ("fednc.cli.queue:command", "List the test examples that a model is least sure of; take labels."),
    "report": ("fednc.cli.report:command", "Write a plain-language report of a run."),
    "serve": ("fednc.cli.serve:command", "Serve models over REST and gRPC."),
    "compare": ("fednc.cli.compare:command", "Compare methods fairly, in this machine's processes."),
    "search": ("fednc.cli.search:app", "Search for the best settings of a run, over clients that stay."),
    "plugins": ("fednc.cli.plugins:app", "List installed tasks, methods and trackers, and check one."),
    "bench": ("fednc.cli.bench:app", "Measure link, fold, scale, trainer, search and serve."),
}


# These handle signals themselves, and have nothing to clean up before that.
_HANDLE_SIGNALS = ("server", "client", "serve", "console")


class LazyGroup(TyperGroup):
    """A group that knows the names of its commands, and imports one only when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The real command instead of its placeholder."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name else None, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; one of our errors becomes one message and the exit code of its class.

        So do errors of the operating system: nobody needs a traceback to make a folder writable.
        """
        try:
            fault_injection.arm(os.environ)
            return super().invoke(ctx)
        except FedncError as e:
            raise _ended_by(e) from e
        except OSError as e:
            raise _ended_by(of_system(e)) from e


def run() -> None:
    """The console script, once signals are handled."""
    guard_console()
    end_at_once_while_loading()
    quiet_flower()
    try:
        app()
    finally:
        drain_console()


def _ended_by(error: FedncError) -> typer.Exit:
    say_error(error)
    return typer.Exit(error.exit_code)


def exit_codes() -> dict[int, str]:
    """What each exit code means, from the error classes."""
    public = [error for error in FedncError.__subclasses__() if error.__module__ == FedncError.__module__]
    errors = sorted(public, key=lambda error: error.exit_code)
    meanings = {error.exit_code: (error.__doc__ or error.__name__).splitlines()[0] for error in errors}
    return {0: "Success.", 1: "Any other failure.", **meanings, EXIT_INTERRUPTED: "Interrupted (Ctrl-C)."}


def _load(name: str) -> Any:
    if name not in _HANDLE_SIGNALS:
        interrupt_as_usual()
    module, attribute = COMMANDS[name][0].split(":")
    target = getattr(import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command(name)(target)
        target = single
    return typer.main.get_command(target)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fednc {metadata.version('fednc')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Federated learning over gRPC in which every client trains towards the same frozen target."""
    del version


def _placeholder() -> None:
    """Placeholder for a command whose module is not imported yet."""


def _build() -> typer.Typer:
    epilog = "\n\n".join(["Exit codes:", *(f"{code:>3}  {meaning}" for code, meaning in exit_codes().items())])
    # click suggests the nearest name already; typer would repeat it
    built = typer.Typer(
        cls=LazyGroup, no_args_is_help=True, suggest_commands=False, pretty_exceptions_show_locals=False
    )
    built.callback(epilog=epilog)(_root)
    for name, (_, line) in COMMANDS.items():
        built.command(name, help=line)(_placeholder)
    return built


app = _build()

if __name__ == "__main__":
    run()
