"""Results as a table that a person reads: a row for each model, metrics on the test parts."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

_METRICS = ("pr_auc", "roc_auc", "f1", "precision", "recall", "mcc")
_TITLES = ("PR-AUC", "ROC-AUC", "F1", "precision", "recall", "MCC")

_MOST_SITES = 12
"""More would push what matters off the screen; the run's record has them all."""

Row = tuple[str, ...]


def metrics_table(final: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Give header and rows for one model: pooled, per site, and the majority baseline.

    Of many sites there are the least, the median and the greatest, each metric for itself.
    """
    per_site = final["per_site"]
    rows = [("all sites", *_numbers(final["global"]))]
    if len(per_site) > _MOST_SITES:
        rows += _spread(list(per_site.values()))
    else:
        rows += [(site_id, *_numbers(metrics)) for site_id, metrics in per_site.items()]
    rows.append(('always "no failure"', *_numbers(final["baseline"])))
    return ("test part of", *_TITLES), rows


def comparison_table(models: Mapping[str, Mapping[str, Any]]) -> tuple[Row, list[Row]]:
    """Give header and rows for several models, judged on the same pooled test parts.

    Args:
        models: A name and the `final` metrics of each.
    """
    sites = list(next(iter(models.values()))["per_site"])
    header = ("model", *_TITLES, *(f"PR-AUC at {site_id}" for site_id in sites))
    rows = [
        (
            name,
            *_numbers(final["global"]),
            *(f"{final['per_site'][site_id]['pr_auc']:.3f}" for site_id in sites),
        )
        for name, final in models.items()
    ]
    baseline = next(iter(models.values()))["baseline"]
    rows.append(('always "no failure"', *_numbers(baseline), *("" for _ in sites)))
    return header, rows


def _spread(sites: Sequence[Mapping[str, float]]) -> list[Row]:
    known = {
        name: sorted(m[name] for m in sites if math.isfinite(m.get(name, math.nan)))
        for name in _METRICS
    }
    return [
        (f"{title} of {len(sites)} sites", *_numbers(found))
        for title, found in (
            ("lowest", {name: values[0] for name, values in known.items() if values}),
            (
                "median",
                {name: statistics.median(values) for name, values in known.items() if values},
            ),
            ("highest", {name: values[-1] for name, values in known.items() if values}),
        )
    ]


def _numbers(metrics: Mapping[str, float]) -> Sequence[str]:
    return [f"{metrics[name]:.3f}" if name in metrics else "-" for name in _METRICS]
