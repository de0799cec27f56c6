"""The processes of a world as a team that shares work other than training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from outmodal.errors import UserError
from outmodal.train import gather
from outmodal.train.together import on_main


class WorldTeam:
    """All ranks: in each round the next items, one a rank (see `models.embed.Team`).

    Ranks meet after every item, so that one's mistake ends all of them, and that none waits for
    longer than an item takes.
    """

    def main(self, act: Callable[[], Any]) -> Any:
        """See Team.main."""
        return on_main(act)

    def share(self, items: Sequence[int], act: Callable[[int], Any]) -> Iterator[list[Any]]:
        """See Team.share."""
        world = gather.world()
        for start in range(0, len(items), world.size):
            own = items[start + world.rank : start + world.rank + 1]
            answers = gather.all_gather_objects(_answer(act, own))
            for _, mistake in answers:
                if mistake is not None:
                    raise UserError(mistake)
            yield [result for result, _ in answers[: len(items) - start]]


def _answer(act: Callable[[int], Any], items: Sequence[int]) -> tuple[Any, str | None]:
    """The result, or what the user did wrong. Other errors end this process, and so the group."""
    try:
        return (act(items[0]) if items else None), None
    except UserError as error:
        return None, str(error)
