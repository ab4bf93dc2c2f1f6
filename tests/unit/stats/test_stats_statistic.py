"""The shape of a statistic: NaN needs a reason, settings are checked, warnings are caught."""

from __future__ import annotations

import math
import warnings

import pytest

from rhstudy.configs import from_mapping, plain
from rhstudy.errors import InputError
from rhstudy.stats.statistic import Statistic, StatisticsSettings, recorded, undefined


def test_nan_needs_a_reason():
    with pytest.raises(InputError, match=r"Statistic\.reason must say why a value is NaN, got ''"):
        Statistic(estimate=1.0, low=math.nan, high=2.0, n=3, method="m")


def test_json_of_defined_and_undefined():
    whole = Statistic(estimate=1.0, low=0.5, high=2.0, n=3, method="m", p=0.1, seed=4, warnings=("w",))
    assert whole.json() == {
        "estimate": 1.0,
        "low": 0.5,
        "high": 2.0,
        "p": 0.1,
        "n": 3,
        "method": "m",
        "seed": 4,
        "reason": "",
        "warnings": ["w"],
    }
    assert "p" not in undefined("why", n=0, method="m").json()
    assert undefined("why", n=0, method="m", tested=True).json()["p"] is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"level": 1.0}, r"statistics.level must be between 0 and 1, got 1.0"),
        ({"alpha": 0.0}, r"statistics.alpha must be between 0 and 1"),
        ({"power": 2.0}, r"statistics.power must be between 0 and 1"),
        ({"num_permutations": 10}, r"statistics.num_permutations must be at least 100, got 10"),
        ({"num_resamples": 10}, r"statistics.num_resamples must be at least 100"),
        ({"num_power_draws": 10}, r"statistics.num_power_draws must be at least 100"),
        ({"max_exact_n": 10}, r"statistics.max_exact_n must be 3 to 9, got 10"),
        ({"min_bootstrap_n": 3}, r"statistics.min_bootstrap_n must be at least 4"),
        ({"min_regression_n": 3}, r"statistics.min_regression_n must be at least 4"),
        ({"supported_above": 1.0}, r"statistics.supported_above must be in \[-1, 1\)"),
    ],
)
def test_settings_are_checked(change, match):
    with pytest.raises(InputError, match=match):
        StatisticsSettings(**change)


def test_settings_survive_toml_values():
    settings = StatisticsSettings(rivals=("cosine",))
    assert from_mapping(StatisticsSettings, plain(settings)) == settings


def test_warnings_are_recorded_once_each():
    def noisy():
        for _ in range(2):
            warnings.warn("singular", RuntimeWarning, stacklevel=1)
        return 5

    assert recorded(noisy) == (5, ("RuntimeWarning: singular",))
