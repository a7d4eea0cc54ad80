import json
import math
from typing import Any

import pytest

from tamperdose.errors import DataError
from tamperdose.report.select import (
    arm_labels,
    choose_facet,
    common_settings,
    curve,
    headline_judge,
    list_arms,
    load_run,
    panel_name,
    select_judge,
)


def test_curve_is_the_file(synthetic: Any) -> None:
    frame = synthetic.frame(synthetic.rows(synthetic.arm())[::-1])
    points = curve(frame, list_arms(frame)[0], "RRR")
    assert points.steps == synthetic.doses
    assert points.value[2] == pytest.approx(0.94 / (1 + 0.25))
    assert points.low[2] == pytest.approx(points.value[2] - 0.08)


def test_undefined_is_nan_and_absent_is_empty(synthetic: Any) -> None:
    arm = synthetic.arm()
    frame = synthetic.frame([synthetic.cell(arm, 0, "RRR", None)])
    only = list_arms(frame)[0]
    assert math.isnan(curve(frame, only, "RRR").value[0]) and not curve(frame, only, "RRR").defined
    assert curve(frame, only, "RD").steps == ()


def test_benign_rrr_is_not_rrr(synthetic: Any) -> None:
    arm = synthetic.arm()
    benign = synthetic.cell(arm, 0, "RRR", 0.1) | {"subset": "benign"}
    frame = synthetic.frame([benign, synthetic.cell(arm, 0, "RRR", 0.9)])
    assert curve(frame, list_arms(frame)[0], "RRR").value == (0.9,)


def test_two_values_for_one_dose_are_refused(synthetic: Any) -> None:
    arm = synthetic.arm()
    frame = synthetic.frame([synthetic.cell(arm, 0, "RRR", 0.9), synthetic.cell(arm, 0, "RRR", 0.8)])
    with pytest.raises(DataError, match="more than one RRR at 0 steps"):
        curve(frame, list_arms(frame)[0], "RRR")


def test_select_judge_keeps_rd_and_drops_other_judges(synthetic: Any) -> None:
    rows = synthetic.rows(synthetic.arm())
    others = [row | {"judge": "phrases@1", "value": 0.0} for row in rows if row["judge"]]
    frame = select_judge(synthetic.frame(rows + others), "classifier@1")
    assert len(frame) == len(rows)
    assert {"RD", "RRR"} <= set(frame["metric"])
    with pytest.raises(DataError, match=r"did you mean 'phrases@1'"):
        select_judge(synthetic.frame(rows + others), "phrase@1")


def test_models_are_ordered_by_size_with_unknown_last(synthetic: Any) -> None:
    sizes = {"big": 7, "unknown": "", "small": 1}
    rows = [row for name, size in sizes.items() for row in synthetic.rows(synthetic.arm(name, params_b=size), (0,))]
    assert [arm.model for arm in list_arms(synthetic.frame(rows))] == ["small", "big", "unknown"]


def test_labels_name_only_what_differs(synthetic: Any) -> None:
    arms = list_arms(synthetic.frame(synthetic.three_models()))
    assert arm_labels(arms)[:2] == ["TinyLlama-1.1B seed=42", "TinyLlama-1.1B seed=43"]
    assert arm_labels(arms, facet="model")[:2] == ["seed=42", "seed=43"]
    assert arm_labels(arms[:1]) == ["TinyLlama-1.1B"]
    assert common_settings(arms) == "defence refusal_tuning, attack lora, rank 8, examples 64, lr 0.001, batch 8"


def test_data_order_is_named_where_seeds_do_not_tell_it(synthetic: Any) -> None:
    rows = [row for order in (1, 2) for row in synthetic.rows(synthetic.arm(data_order=order, arm=f"o{order}"), (0,))]
    assert arm_labels(list_arms(synthetic.frame(rows))) == ["order=1", "order=2"]


def test_arms_that_differ_in_nothing_get_their_own_names(synthetic: Any) -> None:
    rows = [row for name in ("a", "b") for row in synthetic.rows(synthetic.arm("m", arm=name), (0,))]
    assert arm_labels(list_arms(synthetic.frame(rows))) == ["m demo a", "m demo b"]


def test_pooled_arm_is_told_from_its_seeds(synthetic: Any) -> None:
    single = synthetic.rows(synthetic.arm("m", arm="one"), (0,))
    pooled = [row | {"arm": "all", "seed": "", "data_order": "", "scope": "attack"} for row in single]
    assert arm_labels(list_arms(synthetic.frame(single + pooled))) == [
        "seed=42 scope=trajectory",
        "seed=all scope=attack",
    ]


def test_facets(synthetic: Any) -> None:
    three = list_arms(synthetic.frame(synthetic.three_models((42, 43, 44))))
    assert choose_facet(three) == "model"
    assert choose_facet(three[:5]) == ""
    rows = [
        row
        for rank in (4, 8, 16)
        for seed in range(4)
        for row in synthetic.rows(synthetic.arm(rank=rank, seed=seed), (0,))
    ]
    arms = list_arms(synthetic.frame(rows))
    assert choose_facet(arms) == "rank"
    assert panel_name(arms[0], "rank") == "rank=4"
    kinds = [row for kind in ("lora", "prefill") for row in synthetic.rows(synthetic.arm(arm=kind, attack=kind), (0,))]
    assert choose_facet(list_arms(synthetic.frame(kinds))) == "attack"


def test_one_arm_of_two_models_is_refused(synthetic: Any) -> None:
    rows = synthetic.rows(synthetic.arm("m", arm="x"), (0,)) + synthetic.rows(synthetic.arm("k", arm="x"), (1,))
    with pytest.raises(DataError, match="more than one model"):
        list_arms(synthetic.frame(rows))


def test_no_rows_are_refused(synthetic: Any) -> None:
    with pytest.raises(DataError, match="no metrics"):
        list_arms(synthetic.frame([]))
    with pytest.raises(DataError, match="has no rows"):
        load_run(synthetic.run([], synthetic.folder))


@pytest.mark.parametrize("manifest", [[], {}, {"headline_judge": 3}, {"headline_judge": ""}])
def test_manifest_without_headline_judge(synthetic: Any, manifest: object) -> None:
    (synthetic.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="does not name the headline judge"):
        headline_judge(synthetic.folder)


def test_manifest_that_is_not_json(synthetic: Any) -> None:
    (synthetic.folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        headline_judge(synthetic.folder)
