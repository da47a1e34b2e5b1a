"""Typer's command and group with our help page."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class HelpCommand(TyperCommand):
    """A command with the help page of :mod:`weaksam_cli.help_page`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the page."""
        _print_page(self, ctx)


class HelpGroup(TyperGroup):
    """A group of commands with the same help page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the page."""
        _print_page(self, ctx)


def _print_page(command: Any, ctx: Any) -> None:
    from weaksam_cli.help_page import print_page  # rich, which only help needs

    print_page(command, ctx)
