"""Published rows: they stand beside results of the data and the protocol that they are of, and beside no others."""

from __future__ import annotations

from configs.schema.probes import PROBE_DATA, PROBE_TASKS
from training.probes.published import FIGURES, PROTOCOL, matching
from training.probes.results import METRICS


def test_every_published_figure_belongs_to_a_source_a_task_and_a_metric_of_ours() -> None:
    names = set(PROBE_DATA.names())
    assert [one for one in FIGURES if one.data not in names or one.task not in PROBE_TASKS or one.metric not in METRICS[one.task]] == []


def test_rows_are_printed_beside_the_whole_published_protocol_alone() -> None:
    record = {"protocol": PROTOCOL, "tier": "reference", "settings": {"steps": None}, "data": {"name": "scannetpp_probe"}}
    assert {one.model: one.value for one in matching(record, "depth")}["SnD S"] == 0.3299
    for other in ({"protocol": "clean"}, {"tier": "cached"}, {"settings": {"steps": 2}}, {"data": {"name": "dataset"}}):
        assert matching({**record, **other}, "depth") == []
