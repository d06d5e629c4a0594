"""`--push_to_hub` in a training script, by our own way of publishing and not the Trainer's.

The Trainer's own push uploads `training_args.bin`, a pickle, and a card that repeats the arguments where the live
optimizer is asked for.
"""

import dataclasses
from pathlib import Path
from typing import Any

from hf_proxadam.report import hub, publish
from hf_proxadam.report.persistence import HubError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a training's model is published once it is done.

    Attributes:
        repo_id: `ORG/NAME`.
        private: whether the repository has to be a private one.
        token: access token; None for the one that is saved.
    """

    repo_id: str
    private: bool
    token: str | None = dataclasses.field(repr=False)

    def publish(self, folder: Path) -> str:
        """Publish the model in `folder`; returns one line about it. Call it on rank 0.

        Raises:
            HubError: the Hub refused, or can't be reached; the sentence says how to publish later.
        """
        try:
            contents, _ = publish.prepare(folder)
            return hub.publish(contents, self.repo_id, self.private, self.token).told
        except (HubError, ValueError) as error:
            private = " --private" if self.private else ""
            raise HubError(
                f"{error} The model is in {folder}; `hf-proxadam publish {folder} --repo-id {self.repo_id}{private}` "
                "publishes it later."
            ) from error


def take_over(arguments: Any) -> Destination | None:
    """Take the push from the Trainer that is going to be made with these arguments.

    Asks the Hub on rank 0, so that a wrong name or missing rights are told before the training and not after it.

    Args:
        arguments: the script's `TrainingArguments`; `push_to_hub` is turned off in them.

    Returns:
        Where to publish, or None if the script is not asked to.

    Raises:
        ValueError: an option that can't be honoured, or a wrong name.
        HubError: nobody is logged in, the Hub refuses, or it can't be reached.
    """
    if not arguments.push_to_hub:
        return None
    strategy = str(getattr(arguments.hub_strategy, "value", arguments.hub_strategy))
    if "checkpoint" in strategy:
        raise ValueError(f"--hub_strategy is {strategy!r}, but checkpoints are never published; leave it out.")
    for option in ("hub_always_push", "hub_revision"):
        if getattr(arguments, option, None):
            raise ValueError(f"--{option} has no effect here: the model is published once, at the end, on main.")
    arguments.push_to_hub = False
    name = arguments.hub_model_id or Path(arguments.output_dir).resolve().name
    token, private = arguments.hub_token, bool(arguments.hub_private_repo)
    repo_id = name if "/" in name else hub.own_name(name, token)
    hub.check_name(repo_id)
    if arguments.process_index == 0:
        hub.open_repository(repo_id, "model", private, token)
    return Destination(repo_id=repo_id, private=private, token=token)
