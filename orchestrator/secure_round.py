"""A round under secure aggregation: train, then relay the sites' messages until their sum is open.

    train    all drawn sites; each keeps its update
    keys     key advertisement: public keys, signed
    shares   key sharing: seeds divided among the sites, sealed
    mask     masked input: the masked updates, added up
    confirm  consistency check: who was added, signed by the sites
    unmask   unmasking: shares that open the sum, and the sum alone

A site that is lost while it trains, or in any of the steps, is done without as long as enough are
left. A session that too many left is begun anew, without training again.
"""

import secrets
from collections.abc import Sequence
from typing import Any, cast

from loguru import logger

from core.exceptions import AggregationError, FederatedLearningError
from core.secure.addends import Sum, as_sum
from core.secure.context import Context, trained_on
from core.secure_messages import Trained
from core.wire import Packed
from orchestrator.algorithms import Algorithm, Summed
from orchestrator.fleet import Answers
from orchestrator.round_context import RoundContext, SecureSum
from orchestrator.secure_session import Session, asked
from orchestrator.stragglers import Patience


def sum_at_sites(
    round_num: int,
    site_ids: Sequence[str],
    context: RoundContext,
    algorithm: Algorithm,
    *,
    secure: SecureSum,
    patience: Patience,
) -> tuple[Summed, Answers[dict[str, Any]]]:
    """Have these sites train and add up what they come to, so that nobody sees a single update.

    Returns:
        The sum; and what is told of each site in it, with those that are in none and why.

    Raises:
        FederatedLearningError: Too few sites trained.
        AggregationError: Too few lasted through the session, each time that it was tried.
    """
    model = algorithm.broadcast()
    config = algorithm.configure_client_training(round_num)
    fewest = max(context.min_sites or len(site_ids), secure.settings["threshold"])

    def train(site_id: str) -> Trained:
        request = {**context.training(site_id, config, algorithm), "kind": "train"}
        request["parameters"] = model
        return asked(context, site_id, request, Trained, round_num)

    trained = context.waiting.enough(
        lambda: context.fleet.ask(site_ids, train, patience),
        fewest,
        what=f"round {round_num}",
        round_num=round_num,
    )
    told = {"seed": context.seed, "model": context.model, "preprocessing": context.preprocessing}
    sessions = Sessions(
        context,
        secure,
        round_num=round_num,
        trained_on=trained_on({**told, **config}, model.body_hash),
        like=model,
        fewest=fewest,
    )
    total, survivors = sessions.run(sorted(trained.ok))
    rows = sum(context.rows[site_id] for site_id in survivors)
    if total.samples > rows:
        raise AggregationError(
            f"round {round_num}: {', '.join(survivors)} claim {total.samples} samples, and have "
            f"registered {rows} rows",
            round_num=round_num,
        )
    answers = Answers(
        ok={site_id: cast("dict[str, Any]", trained.ok[site_id]) for site_id in survivors},
        failed={
            site_id: error
            for site_id, error in {**sessions.lost, **trained.failed}.items()
            if site_id not in survivors
        },
    )
    return Summed(total, model, survivors, round_num), answers


class Sessions:
    """The sessions of one round, until one gives its sum.

    Args:
        context: The run's.
        secure: Likewise.
        round_num: The round.
        trained_on: What the sites trained on.
        like: The parameters that they started from.
        fewest: Fewest sites that make a round.

    Attributes:
        lost: The sites that did not answer in the last session, and why.
    """

    def __init__(
        self,
        context: RoundContext,
        secure: SecureSum,
        *,
        round_num: int,
        trained_on: str,
        like: Packed,
        fewest: int,
    ) -> None:
        self._context = context
        self._secure = secure
        self._round_num = round_num
        self._trained_on = trained_on
        self._like = like
        self._fewest = fewest
        self.lost: dict[str, FederatedLearningError] = {}

    def run(self, site_ids: Sequence[str]) -> tuple[Sum, list[str]]:
        """Give the sum of these sites' updates, and the sites that are in it.

        Raises:
            AggregationError: No session had enough sites to its end.
        """
        for left in reversed(range(self._context.fleet.attempts)):
            try:
                return self._session(site_ids)
            except AggregationError as exc:
                if not left:
                    raise
                logger.bind(round_num=self._round_num).warning("{}; beginning a new session", exc)
        raise AssertionError

    def _session(self, site_ids: Sequence[str]) -> tuple[Sum, list[str]]:
        self.lost = {}
        context = Context(
            run_id=self._secure.run_id,
            settings=self._secure.settings,
            round_num=self._round_num,
            trained_on=self._trained_on,
            session_id=secrets.token_hex(16),
        )
        session = Session(self._context, context, self._like, self._fewest, self.lost)
        session.agree(site_ids)
        session.add_up()
        return as_sum(session.opened(), self._like, self._secure.settings), session.survivors
