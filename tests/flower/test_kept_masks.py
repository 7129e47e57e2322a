"""Masks that sites keep of the final evaluation, to choose postprocessing with."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.kept_masks import KeptMasks, MaskIndex
from fedsam_pipeline.flower.site_postprocessing import answer
from fedsam_pipeline.preprocessing.store import CaseStore
from fedsam_pipeline.specs.recipe import load_recipe
from tests.flower.federations import Federation
from tests.flower.test_postprocessing import LARGEST, sites_with_masks


def test_the_final_evaluation_keeps_the_masks_it_scores(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"site_a": 2})
    tensors = federation.run()
    setup = federation.setups[0]
    federation.loop.evaluate(tensors)
    masks = KeptMasks(setup.state_folder)
    assert masks.index() is None  # nobody asked for them
    federation.loop.evaluate(tensors, keep_masks=True)
    assert masks.index() == MaskIndex(
        preprocessing_sha256=setup.model.plans.preprocessing_sha256(), cases={"site_a_2": "site_a"}, released_with=()
    )
    labels = np.asarray(CaseStore(setup.store_folder).open("site_a_2").labels[:])
    mask = masks.read("site_a_2", labels.shape)
    scored = json.loads((setup.state_folder / "validation.json").read_text())["cases"][0]["tp_fp_fn"]
    assert [[int(((labels == k) & (mask == k)).sum()), int(((labels != k) & (mask == k)).sum())] for k in (1, 2)] == [
        row[:2] for row in scored
    ]


def test_masks_are_kept_of_the_model_that_all_sites_share(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"site_a": 2, "site_b": 2}, recipe=load_recipe("fedsa_lora"))
    federation.loop.evaluate(federation.run(), keep_masks=True)
    setup = federation.setups[0]
    labels = np.asarray(CaseStore(setup.store_folder).open("site_a_2").labels[:])
    mask = KeptMasks(setup.state_folder).read("site_a_2", labels.shape)
    scored = json.loads((setup.state_folder / "validation_shared.json").read_text())["cases"][0]["tp_fp_fn"]
    assert [row[0] + row[1] for row in scored] == [int((mask == value).sum()) for value in (1, 2)]


def test_a_kept_mask_that_is_damaged_or_of_another_shape_is_named(tmp_path: Path) -> None:
    (setup,) = sites_with_masks(tmp_path, {"site_a": 1}, floor=1)
    masks = KeptMasks(setup.state_folder)
    with pytest.raises(FedsamError, match="another shape than its case"):
        masks.read("site_a_0", (1, 2, 3))
    path = setup.state_folder / "validation_masks" / "site_a_0.b2nd"
    path.write_bytes(b"this is no array")
    with pytest.raises(FedsamError, match="a kept mask cannot be read"):
        answer(setup, (), [LARGEST])
    masks.clear()
    assert not list(path.parent.iterdir())


def test_many_classes_are_kept_as_they_are(tmp_path: Path) -> None:
    masks = KeptMasks(tmp_path)
    many = np.arange(2 * 300).reshape(2, 15, 20)
    masks.add("case", many)
    assert np.array_equal(masks.read("case", many.shape), many)
