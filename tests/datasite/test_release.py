"""The last gate: which fields may leave, how large, and about how many rows."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from federations import Federation
from sites import (
    FEDAVG,
    PREPROCESSING,
    PROBE,
    RESEARCHER,
    ROWS,
    SPLIT,
    TRAIN_ROWS,
    ask,
    encoded,
    evaluate_request,
    parameters,
    planned,
    register,
    train_request,
)
from untrusted import Says

from core import messages, wire
from core.compression import VALUES
from core.evaluation import BINS, pool, summarise
from core.exceptions import DataError, FederatedLearningError, ModelError, SecurityError
from core.messages import Reply
from datasite.failures import LONGEST_MESSAGE, as_failure
from datasite.fields import FIELDS
from datasite.release import require_listed
from datasite.site import FactoryDataSite
from datasite.trainer import InlineTrainer, Watch
from datasite.training.work import Assignment, Done
from orchestrator.report import metrics_table

OpenSite = Callable[..., FactoryDataSite]

OFFERED = {"name": "press", "version": 1, "rows": 100, "schema": {}}


UNASKED: dict[str, Any] = {
    "kind": "update",
    "datasite_id": "factory-1",
    "round_num": 0,
    "num_samples": ROWS,
    "num_steps": 1,
    "metrics": {},
    "parameters": {},
}


def becomes(reply: dict[str, Any]) -> None:
    """Have the reply be an update that nobody asked for."""
    reply.clear()
    reply.update(UNASKED)


def refused(
    open_site: OpenSite, folder: Path, change: Callable[[dict[str, Any]], object], kind: str
) -> str:
    """Give why the gate withholds an answer that was changed so; the log must say it too."""
    site = open_site(lambda _config: Says(change))
    register(site, folder)
    plan_id = planned(site)
    requests: Mapping[str, Any] = {
        "train": train_request(plan_id),
        "evaluate": evaluate_request(plan_id),
        "statistics": {"kind": "statistics", "plan_id": plan_id},
    }
    reply = ask(site, requests[kind])
    assert (reply["kind"], reply["error"]) == ("failure", "SecurityError")
    return str(reply["message"])


def test_the_list_has_every_field_of_every_reply_and_no_other() -> None:
    """A field that is added to a message leaves no site before it stands in the list."""
    replies = {get_args(get_type_hints(kind)["kind"])[0]: kind for kind in get_args(Reply)}
    assert FIELDS.keys() == replies.keys()
    for name, kind in replies.items():
        assert FIELDS[name].keys() == get_type_hints(kind).keys(), name


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"datasite_id": "x" * 64}, "datasite_id"),
        ({"models": ["m" * 257]}, "models"),
        ({"algorithms": ["a"] * 1001}, "algorithms"),
        ({"status": "SECRET"}, "status"),
        ({"rows": [[1.0, 2.0]]}, "an unknown one"),
        (
            {"datasets": [{"name": "x", "version": 1, "rows": 1, "schema": {}, "mean": 1}]},
            "dataset",
        ),
        (
            {"datasets": [{"name": "x", "version": 1, "rows": 1, "schema": {"s": "s" * 2**20}}]},
            "da",
        ),
    ],
    ids=["a long name", "a long item", "a long list", "another word", "unknown", "within", "large"],
)
def test_a_field_beyond_its_bound_does_not_leave(
    site: FactoryDataSite, changes: dict[str, Any], field: str
) -> None:
    """The reply is withheld whole, and the refusal names the field and not what it held."""
    told: Any = {**site.describe(), **changes}
    with pytest.raises(SecurityError, match=f"the field '{field}") as error:
        require_listed(told, site_id="factory-1")
    assert "SECRET" not in str(error.value)


def test_a_request_is_no_reply() -> None:
    """What the list has no kind for does not leave."""
    with pytest.raises(SecurityError, match="a 'describe' message is no reply"):
        require_listed(messages.DescribeRequest(kind="describe"), site_id="factory-1")


@pytest.mark.parametrize(
    ("kind", "change", "why"),
    [
        ("train", lambda r: r.update(datasite_id="other"), "answered another request"),
        ("train", lambda r: r.update(round_num=7), "answered another request"),
        ("statistics", becomes, "a 'update' reply to a 'statistics' request"),
        ("train", lambda r: r["parameters"].update(row=torch.ones(1)), "not those of the plan's"),
        (
            "train",
            lambda r: r.update(parameters={n: t.double() for n, t in r["parameters"].items()}),
            "not those of the plan's model",
        ),
        ("train", lambda r: r.update(control={"row": torch.ones(1)}), "not those of the plan's"),
        (
            "train",
            lambda r: r["parameters"].update({VALUES: torch.ones(1)}),
            "not those of the plan's model",
        ),
        ("evaluate", lambda r: r["test"]["positives"].append(1), "the field 'test'"),
        ("evaluate", lambda r: r["validation"]["negatives"].clear(), "the field 'validation'"),
        ("statistics", lambda r: r["label_counts"].append(5), "the field 'label_counts'"),
        ("statistics", lambda r: r["total"].append(0.5), "not one number for each feature"),
        ("statistics", lambda r: r["total_of_squares"].clear(), "not one number for each"),
    ],
    ids=[
        "another site",
        "another round",
        "an update that nobody asked for",
        "a tensor more",
        "tensors of more bytes",
        "a control of its own",
        "a compressed tensor",
        "a bin more",
        "no bins",
        "a label more",
        "a sum more",
        "no squares",
    ],
)
def test_what_the_trainer_adds_does_not_leave(
    open_site: OpenSite,
    tmp_path: Path,
    kind: str,
    change: Callable[[dict[str, Any]], object],
    why: str,
) -> None:
    """The answer must be of the form that the request and the plan's model give it."""
    assert why in refused(open_site, tmp_path, change, kind)


def test_an_error_that_the_trainer_makes_up_does_not_leave(
    open_site: OpenSite, tmp_path: Path
) -> None:
    """A class by another name, or a text without end, is no failure of ours."""

    def change(reply: dict[str, Any]) -> None:
        reply.clear()
        reply.update(kind="failure", error="Row42", message="", datasite_id="factory-1")

    assert "the field 'error'" in refused(open_site, tmp_path, change, "statistics")


def test_parts_with_as_many_failures_as_are_told_of_are_told(site: FactoryDataSite) -> None:
    """With 25 failures in 100 rows each part has 5, which is as few as a site tells of."""
    plan_id = planned(site)
    report = ask(site, evaluate_request(plan_id))
    assert "withheld" not in report
    assert [sum(report[part]["positives"]) for part in ("validation", "test")] == [5, 5]


def test_a_part_with_few_failures_is_withheld_whole(open_site: OpenSite, tmp_path: Path) -> None:
    """By `minimum_count: 6` the five failures of a part are too few: its total would tell them."""
    site = open_site(release={"minimum_count": 6})
    register(site, tmp_path)
    report = ask(site, evaluate_request(planned(site)))
    assert report["withheld"] == ["validation", "test"]
    nothing = {"count": 0, "loss_total": 0.0, "negatives": [0] * BINS, "positives": [0] * BINS}
    assert report["validation"] == report["test"] == nothing


def test_each_part_is_judged_for_itself(open_site: OpenSite, tmp_path: Path) -> None:
    """A tenth validates: of 25 failures 2 or 3; a fifth tests: 5."""
    site = open_site()
    register(site, tmp_path)
    report = ask(site, evaluate_request(planned(site, split=SPLIT | {"validation": 0.1})))
    assert report["withheld"] == ["validation"]
    assert report["validation"]["count"] == 0
    assert report["test"]["count"] == 20


def test_label_counts_of_few_failures_are_withheld(open_site: OpenSite, tmp_path: Path) -> None:
    """The sums over all rows are told; of 4 failures in 100 rows neither count is."""
    site = open_site()
    register(site, tmp_path, failure=[1] * 4 + [0] * 96)
    reply = ask(site, {"kind": "statistics", "plan_id": planned(site)})
    assert (reply["count"], reply["label_counts"]) == (ROWS, [0, 0])
    assert reply["withheld"] == ["label_counts"]


def test_an_update_of_few_rows_is_withheld(open_site: OpenSite, tmp_path: Path) -> None:
    """Whoever proposes the split could have one row trained on: the update would tell it."""
    site = open_site(release={"minimum_count": 10})
    register(site, tmp_path)
    split = {"test": 0.47, "validation": 0.47, "seed": 1}
    reply = ask(site, train_request(planned(site, split=split)))
    assert reply["error"] == "SecurityError"
    assert "rests on fewer than 10 windows" in reply["message"]


def test_the_probe_may_be_about_no_row(open_site: OpenSite, tmp_path: Path) -> None:
    """It learns of no data, and says that it saw one sample."""
    site = open_site()
    register(site, tmp_path)
    reply = ask(site, train_request(planned(site, algorithm=PROBE), algorithm=PROBE))
    assert (reply["kind"], reply["num_samples"]) == ("update", 1)


@pytest.mark.parametrize("compression", ["zstd", "fp16", "int8"])
def test_a_compressed_update_passes(open_site: OpenSite, tmp_path: Path, compression: str) -> None:
    """Compressed tensors have names of their own, and hardly more bytes."""
    from core.compression import compress  # noqa: PLC0415 - here alone

    site = open_site()
    register(site, tmp_path)
    plan_id = planned(site, compression=compression)
    request = train_request(
        plan_id, compression=compression, parameters=compress(parameters(seed=2))
    )
    reply = ask(site, request)
    assert (reply["kind"], reply["num_samples"]) == ("update", TRAIN_ROWS)


def test_the_gate_leaves_an_ordinary_reply_as_it_is(open_site: OpenSite, tmp_path: Path) -> None:
    """To the byte: it looks, and writes nothing anew."""
    given: list[wire.Parcel] = []

    class Keeps(InlineTrainer):
        """Keeps what it answered."""

        def perform(self, assignment: Assignment, *, deadline_s: float, watch: Watch) -> Done:
            done = super().perform(assignment, deadline_s=deadline_s, watch=watch)
            given.append(done.reply)
            return done

    site = open_site(lambda _config: Keeps())
    register(site, tmp_path)
    plan_id = planned(site, algorithm=FEDAVG)
    for request in (
        train_request(plan_id),
        evaluate_request(plan_id, preprocessing=PREPROCESSING),
        {"kind": "statistics", "plan_id": plan_id},
    ):
        assert site.handle(encoded(request), RESEARCHER) is given[-1]


def test_a_message_that_stays_inside_leaves_by_its_class() -> None:
    """A `DataError` quotes cells and files: outside it is a `DataError`, and no more."""
    failure = as_failure(DataError("press.csv line 3: load is 42.0"), site_id="factory-1")
    assert failure["error"] == "DataError"
    assert failure["message"] == "factory-1: failed with DataError; its log says why"


def test_an_error_says_outside_what_it_was_given_for_outside() -> None:
    """And a long text is cut."""
    error = DataError("line 3: load is 42.0", outside="the test part is too small")
    assert as_failure(error, site_id="factory-1")["message"] == "the test part is too small"
    long = as_failure(ModelError("x" * 10_000), site_id="factory-1")
    assert long["message"] == "x" * LONGEST_MESSAGE


def test_new_classes_of_errors_stay_inside() -> None:
    """What nobody has thought about is not told."""

    class NewError(FederatedLearningError):
        """Of a new kind."""

    failure = as_failure(NewError("row 42"), site_id="factory-1")
    assert (failure["error"], "42" in failure["message"]) == ("FederatedLearningError", False)


def test_a_federation_goes_on_without_the_parts_of_a_tiny_site(
    build_federation: Callable[..., Federation], samples: list[Path]
) -> None:
    """Its own metrics are NaN, the record names it, and the pools are those of the others."""
    federation = build_federation()
    everybody = federation.run("all")
    tiny = samples[0].stem
    federation.sites[tiny].close()
    federation.open_site(tiny, minimum_count=50)
    without = federation.run("without")
    for record, whole in zip(without["rounds"], everybody["rounds"], strict=True):
        assert record["withheld"] == {tiny: ["validation", "test"]}
        assert all(math.isnan(value) for value in record["per_site"][tiny].values())
        assert "withheld" not in whole
        others = whole["per_site"].keys() - {tiny}
        assert all(math.isfinite(record["per_site"][site]["pr_auc"]) for site in others)
        assert math.isfinite(record["global"]["loss"])
    assert without["status"] == "COMPLETED"
    _, rows = metrics_table(without["metrics"]["final"])
    (row,) = (row for row in rows if row[0] == tiny)
    assert set(row[1:]) == {"nan"}


def test_a_federation_of_tiny_sites_trains_and_judges_nothing(
    build_federation: Callable[..., Federation],
) -> None:
    """All of it is NaN; the class weight, which nothing is known for, must be none."""
    federation = build_federation()
    for site_id in list(federation.sites):
        federation.sites[site_id].close()
        federation.open_site(site_id, minimum_count=50)
    training = {"local_epochs": 1, "batch_size": 64, "learning_rate": 0.05}
    results = federation.run("tiny", training={**training, "positive_weight": "none"})
    assert results["status"] == "COMPLETED"
    for part in ("global", "validation", "baseline"):
        metrics = results["rounds"][-1][part]
        assert math.isnan(metrics["loss"] if "loss" in metrics else metrics["pr_auc"])
    assert results["metrics"]["best"] is None


def test_nothing_is_known_of_a_withheld_part() -> None:
    """No loss of 0 for what nobody saw."""
    part: Any = {"count": 0, "loss_total": 0.0, "negatives": [0] * BINS, "positives": [0] * BINS}
    assert all(math.isnan(value) for value in summarise(part, 256).values())
    known: Any = {**part, "count": 3, "loss_total": 0.5, "positives": [3] + [0] * (BINS - 1)}
    assert pool([part, known]) == known
