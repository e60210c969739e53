"""Batch norm and a micro-batch of one sample, seen before anything is trained."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from orchestrator.config.base import build
from orchestrator.config.load import config_from_mapping
from orchestrator.data.types import DataInfo
from orchestrator.errors import UserError
from orchestrator.smallest_batch import check_smallest_batch

INFO = DataInfo((1, 8, 8), ("a", "b"), (0.5,), (0.5,), {"train": 1222}, "d", "s")


def check(info=INFO, model="resnet9", workers=1, **train):
    config = config_from_mapping(
        {
            "version": 1,
            "name": "small",
            "data": {"source": {"type": "digits"}},
            "model": {"type": model},
            "scale": {"workers": workers},
            "train": {"for": "1 epochs", **train},
        }
    )
    check_smallest_batch(config, build("task", config.task), info)


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [
        ({"batch_size": 407}, r"train\.batch_size=408 does not"),  # 1,222 = 3 × 407 + 1
        ({"batch_size": 1}, r"train\.batch_size=2 does not"),
        ({"batch_size": 64, "micro_batch": 1}, r"train\.micro_batch=2 may do"),
        # The last six samples are two, two, one and one.
        ({"batch_size": 64, "workers": 4}, r"train\.batch_size=65 does not"),
    ],
)
def test_one_sample_is_refused_with_a_way_out(settings, way_out):
    with pytest.raises(UserError, match=f"of 1 of the 1,222 training samples.*{way_out}"):
        check(**settings)


def test_what_torch_says_is_what_is_looked_for():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        nn.BatchNorm2d(3)(torch.zeros(1, 3, 1, 1))


@pytest.mark.parametrize("settings", [{"batch_size": 408}, {"batch_size": 406}])
def test_two_samples_are_enough(settings):
    check(**settings)


def test_one_sample_is_enough_where_there_is_more_than_one_place():
    large = dataclasses.replace(INFO, shape=(1, 32, 32))
    check(large, batch_size=407)


def test_one_sample_is_enough_without_batch_norm():
    check(dataclasses.replace(INFO, shape=(1, 28, 28)), model="lenet5", batch_size=407)
