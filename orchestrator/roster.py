"""The identity keys of a run's sites, which its plans pin for as long as it runs."""

import json
from collections.abc import Sequence
from pathlib import Path

from core.exceptions import ConfigurationError, ExperimentError
from core.messages import SiteDescription
from core.privacy import SecureAggregation as SecureSettings
from orchestrator.algorithms import ALGORITHMS
from orchestrator.configuration import ExperimentConfig
from orchestrator.files import write_whole
from orchestrator.fleet import Answers
from orchestrator.privacy import SecureAggregation, secure_settings


def pinned(
    config: ExperimentConfig,
    described: Answers[SiteDescription],
    chosen: Sequence[str],
    folder: Path,
) -> SecureSettings | None:
    """Give what the plans of a run say of secure aggregation; None at another level.

    The roster is that of the run's first start, when all sites that may train must have been
    reached; it is kept in the run's folder, so that a resumed run proposes the same plans.

    Raises:
        FederatedLearningError: At the first start, a site was not reached.
        ConfigurationError: A site gives no identity key.
    """
    if not isinstance(config.privacy, SecureAggregation):
        return None
    return secure_settings(
        config.privacy,
        roster=_roster(described, chosen, folder / "roster.json"),
        drawn=config.participation.draw_size(len(chosen)),
        weighting=ALGORITHMS[config.algorithm.name].weighting(config.algorithm),
    )


def _roster(
    described: Answers[SiteDescription], chosen: Sequence[str], record: Path
) -> dict[str, str]:
    try:
        kept: dict[str, str] = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as exc:
        raise ExperimentError(f"{record} cannot be read ({exc}); start a new run instead") from exc
    else:
        return kept
    members = {site_id: site for site_id, site in described.ok.items() if site_id in chosen}
    failed = {site_id: why for site_id, why in described.failed.items() if site_id in chosen}
    Answers(ok=members, failed=failed).require(len(chosen), what="roster of the run")
    mute = sorted(site_id for site_id, site in members.items() if "identity_key" not in site)
    if mute:
        raise ConfigurationError(
            f"{', '.join(mute)}: gives no identity key, which secure_aggregation needs; install "
            "this release there"
        )
    roster = {site_id: members[site_id]["identity_key"] for site_id in sorted(members)}
    write_whole(record, json.dumps(roster, indent=1).encode())
    return roster
