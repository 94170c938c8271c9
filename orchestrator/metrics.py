"""What is known of a run: per round, per site and pooled, from counts that the sites returned."""

import csv
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pandas as pd

from core import evaluation
from core.exceptions import ConfigurationError
from core.interfaces import MetricsCollectorInterface, ModelInterface
from core.jsontext import as_json
from core.messages import ClientUpdate, EvaluationReport
from orchestrator.files import write_whole

Evaluator = Callable[[int, ModelInterface], Mapping[str, EvaluationReport]]
"""Scores a model at the sites: round and model in, the reports by site out."""


class MetricsCollector(MetricsCollectorInterface):
    """Collects, pools and exports.

    Args:
        evaluate: Has the sites score the global model; without it, rounds have training metrics
            only.
    """

    def __init__(self, evaluate: Evaluator | None = None) -> None:
        self._evaluate = evaluate
        self.rounds: dict[int, dict[str, Any]] = {}

    def collect_round_metrics(
        self, round_num: int, global_model: ModelInterface, client_updates: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """See `MetricsCollectorInterface`.

        Returns:
            `round_num`; `training` and `sites` as in `training_metrics`; where the model was
            evaluated also `global`, `per_site`, `threshold` and `baseline` as in
            `evaluation_metrics`.
        """
        record: dict[str, Any] = {
            "round_num": round_num,
            **training_metrics([cast("ClientUpdate", update) for update in client_updates]),
        }
        if self._evaluate is not None:
            record.update(evaluation_metrics(self._evaluate(round_num, global_model)))
        self.rounds[round_num] = record
        return record

    def collect_experiment_metrics(self, experiment_results: dict[str, Any]) -> dict[str, Any]:
        """See `MetricsCollectorInterface`.

        Of `experiment_results` it reads `rounds` and, where there is one, `chosen_round`: the round
        whose model is the run's, by default the last.

        Returns:
            `rounds` (how many), `final` (metrics of the run's model), `best` (round and validation
            PR-AUC where that was highest), `seconds` (all rounds together).
        """
        rounds: list[dict[str, Any]] = experiment_results.get("rounds", [])
        chosen = experiment_results.get("chosen_round")
        evaluated = [record for record in rounds if "global" in record]
        candidates = [r for r in evaluated if chosen is None or r["round_num"] == chosen]
        final = candidates[-1] if candidates else {}
        judged = [r for r in evaluated if not math.isnan(r["validation"]["pr_auc"])]
        best = max(judged, key=lambda r: r["validation"]["pr_auc"], default=None)
        return {
            "rounds": len(rounds),
            "final": {
                name: final[name]
                for name in ("round_num", "global", "per_site", "threshold", "baseline")
                if name in final
            },
            "best": best
            and {"round_num": best["round_num"], "pr_auc": best["validation"]["pr_auc"]},
            "seconds": sum(record.get("seconds", {}).get("round", 0.0) for record in rounds),
        }

    def export_metrics(self, filepath: str) -> None:
        """See `MetricsCollectorInterface`; .json keeps the structure, the tables are flat."""
        export_rounds([self.rounds[num] for num in sorted(self.rounds)], Path(filepath))


def training_metrics(updates: list[ClientUpdate]) -> dict[str, Any]:
    """Give `training` (mean loss by samples, slowest fit) and `sites`, each one's own numbers.

    The loss is NaN where a site does not tell its own; under secure aggregation a site tells no
    more than its time.
    """
    counts = ("num_samples", "num_steps")
    sites = {
        update["datasite_id"]: {
            **{name: value for name, value in update.items() if name in counts},
            **update["metrics"],
        }
        for update in updates
    }
    told = [update for update in updates if "num_samples" in update]
    total = sum(update["num_samples"] for update in told)
    loss = sum(u["metrics"].get("train_loss", math.nan) * u["num_samples"] for u in told)
    slowest = max((update["metrics"].get("fit_s", 0.0) for update in updates), default=0.0)
    return {
        "training": {"loss": loss / total if total else 0.0, "slowest_fit_s": slowest},
        "sites": sites,
    }


def evaluation_metrics(reports: Mapping[str, EvaluationReport]) -> dict[str, Any]:
    """Pool the sites' counts.

    The threshold is the one with the largest F1 on the pooled validation parts; the test parts are
    then judged at it.

    Returns:
        `threshold` (a probability of failure), `global` and `per_site` (metrics on the test parts),
        `validation` (on the pooled validation parts), `baseline` (always answering "no failure").
        Where sites withheld parts that are too small to be told of, `withheld` names these by site:
        they are in no pool, and a site's own metrics are NaN.
    """
    withheld = {
        site_id: list(report["withheld"])
        for site_id, report in reports.items()
        if "withheld" in report
    }
    validation = evaluation.pool([report["validation"] for report in reports.values()])
    test = evaluation.pool([report["test"] for report in reports.values()])
    threshold = evaluation.best_threshold(validation)
    return {
        "threshold": evaluation.probability_at(threshold),
        "global": evaluation.summarise(test, threshold),
        "per_site": {
            site_id: evaluation.summarise(report["test"], threshold)
            for site_id, report in reports.items()
        },
        "validation": evaluation.summarise(validation, threshold),
        "baseline": evaluation.majority_baseline(test),
        **({"withheld": withheld} if withheld else {}),
    }


def export_rounds(rounds: list[dict[str, Any]], path: Path) -> None:
    """Write `rounds` to `path` in the format of its suffix; whole or not at all.

    Raises:
        ConfigurationError: The suffix is none of .json, .csv, .parquet.
    """
    match path.suffix:
        case ".json":
            write_whole(path, as_json(rounds, indent=2).encode())
        case ".csv":
            write_whole(path, _as_csv([_flat(record) for record in rounds]).encode())
        case ".parquet":
            buffer = io.BytesIO()
            pd.DataFrame([_flat(record) for record in rounds]).to_parquet(buffer, index=False)
            write_whole(path, buffer.getvalue())
        case suffix:
            raise ConfigurationError(
                f"{path}: metrics are written as .json, .csv or .parquet, not as {suffix!r}"
            )


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give nested keys as `per_site.factory-1.pr_auc`."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _as_csv(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
