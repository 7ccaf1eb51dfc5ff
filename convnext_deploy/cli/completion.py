"""`convnext-deploy completion`."""

import click

from convnext_deploy.cli.console import write
from convnext_deploy.cli.options import quiet_option
from convnext_deploy.cli.verbs import Verb

_PROGRAM, _VARIABLE = "convnext-deploy", "_CONVNEXT_DEPLOY_COMPLETE"  # the variable that click looks at


@click.command("completion", cls=Verb)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@quiet_option
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script by which a shell completes verbs, options and values.

    \b
    bash: echo 'eval "$(convnext-deploy completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(convnext-deploy completion zsh)"' >> ~/.zshrc
    fish: convnext-deploy completion fish > ~/.config/fish/completions/convnext-deploy.fish
    """  # noqa: D301  (click ends the paragraph's wrapping at the escape)
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    write(kind(context.find_root().command, {}, _PROGRAM, _VARIABLE).source())
