"""What ``benchmarks.async_speedup`` says of its runs: means, beside what was published and what is possible."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.workloads import w5
from roll_core.simulation.bounds import split_step_s

Row = dict[str, float]
Result = dict[str, Any]

PUBLISHED = {
    "w1_32x16": 1.30, "w1_64x16": 1.84, "w1_16x64": 1.95, "w2_8x8": 3.4, "w2_128x8": 2.5, "w3_sigma10": 2.46,
    "w4": 243 / 45, "w4_mild": 1.07, "w5_rlvr": 2.24, "w5_agentic": 2.72, "w5_scaling": 7.8,
}  # fmt: skip
SOURCE = {"w5_rlvr": "w5_alpha2_128", "w2_128x8": "w2_128x8_64_redundant"}
"""Which run stands for a published ratio, where the key is not its own."""


def summary(rows: Sequence[Row]) -> Result:
    """Means over the seeds, with the spread of what varies."""
    result: Result = {name: round(statistics.fmean(row[name] for row in rows), 4) for name in rows[0]}
    ratios = [row["ratio"] for row in rows]
    result["seeds"] = len(rows)
    if "bound_s" in rows[0]:
        result["bound"] = round(statistics.fmean(row["base_s"] / row["bound_s"] for row in rows), 4)
    result["ratio_min"], result["ratio_max"] = round(min(ratios), 3), round(max(ratios), 3)
    result["ratio_sd"] = round(statistics.stdev(ratios), 3) if len(ratios) > 1 else 0.0
    return result


def report(rows: dict[str, list[Row]]) -> Result:
    details = {key: summary(found) for key, found in rows.items()}
    ratio = {key: found["ratio"] for key, found in details.items()}
    result: Result = {key: ratio[SOURCE.get(key, key)] for key in PUBLISHED if SOURCE.get(key, key) in ratio}
    if {"w5_alpha2_16", "w5_alpha2_128", "w5_auto_16", "w5_auto_128"} <= details.keys():
        result["w5_rlvr_auto"] = ratio["w5_auto_128"]
        result["w5_eta"] = details["w5_auto_128"]["eta"]
        result["w5_eta_by_workers"] = {
            key.removeprefix("w5_"): found["eta"] for key, found in details.items() if key.startswith("w5_a")
        }
        result["w5_scaling_alpha2"] = round(details["w5_alpha2_16"]["ours_s"] / details["w5_alpha2_128"]["ours_s"], 3)
        result["w5_scaling"] = round(details["w5_auto_16"]["ours_s"] / details["w5_auto_128"]["ours_s"], 3)
    if "alpha0" in ratio:
        result["alpha0_ratio"] = ratio["alpha0"]
    result["bubble"] = {
        key: {name.removeprefix("bubble_"): value for name, value in found.items() if name.startswith("bubble_")}
        for key, found in details.items()
        if "bubble_tail" in found
    }
    result["goodput"] = {key: found["goodput"] for key, found in details.items() if "goodput" in found}
    result["missed"] = missed(result, details)
    result["targets"] = {key: target_row(key, details) for key in PUBLISHED if SOURCE.get(key, key) in details}
    result["details"] = details
    return result


def target_row(key: str, details: dict[str, Result]) -> Result:
    """Mean and spread over the seeds beside what was published and what is possible (null: no bound is known)."""
    found = details[SOURCE.get(key, key)]
    bound = found.get("bound")
    if key == "w5_rlvr":
        bound = round(found["base_s"] / split_step_s(w5(128), 2.0)[0], 3)
    row = {name: found[name] for name in ("ratio", "ratio_sd", "ratio_min", "ratio_max", "seeds")}
    return row | {"target": round(PUBLISHED[key], 3), "bound": bound, "reached": found["ratio"] >= PUBLISHED[key]}


def missed(result: Result, details: dict[str, Result]) -> dict[str, str]:
    """Each published ratio that was not reached, with what forbids it."""
    texts = {}
    for key, target in PUBLISHED.items():
        if (value := result.get(key)) is None or value >= target:
            continue
        texts[key] = f"{value:.2f} of {target:.2f}. " + _bound(
            SOURCE.get(key, key) if key.startswith("w2") else key, details
        )
    return texts


def _bound(key: str, details: dict[str, Result]) -> str:
    if key.startswith("w1"):
        return (
            f"Who knew every length, and paced every sequence so that all end together, could reach at most "
            f"{details[key]['bound']:.2f} on these samples; lengths are known at their ends only."
        )
    if key.startswith("w2"):
        return (
            f"Full engines to the last token of the groups that must be generated on average would be a ratio of "
            f"{details[key]['bound']:.2f}: no strict bound, as who takes what ends first may be lucky."
        )
    if key in ("w4", "w4_mild"):
        found = details[key]
        return (
            f"With 36 groups of 9, each episode on an engine of its own, the 32nd group has its 8th member after "
            f"{found['bound_s']:.1f} s; ours took {found['ours_s']:.1f} s. The rest is the baseline's luck: a delay of "
            f"Exp(100 s) in 1 % of 256 episodes has an expected maximum of {_expected_slowest_s():.0f} s."
        )
    if key == "w5_agentic":
        found = details["w5_agentic_without_redundancy"]
        return (
            f"Episodes of up to {found['base_s'] - found['train_s'] - 5:.0f} s must end within 3 steps, less the "
            f"training of the batch before: at best {found['base_s'] / 3:.0f} s a step without redundancy."
        )
    if key == "w5_rlvr":
        bound_s, workers = split_step_s(w5(128), 2.0)
        found = details["w5_alpha2_128"]
        return (
            f"With alpha = 2 no split of 128 workers (the best has {workers} training) and no speeds that "
            f"bring 16,384 tokens home in time allow a step under {bound_s:.0f} s, a ratio of "
            f"{found['base_s'] / bound_s:.2f}, if every sample is trained on."
        )
    return ""


def _expected_slowest_s(share: float = 0.01, episodes: int = 256, mean_s: float = 100.0) -> float:
    """E[max] over Binomial(episodes, share) delays of Exp(mean)."""
    total, harmonic = 0.0, 0.0
    for slow in range(1, 40):
        harmonic += 1 / slow
        total += math.comb(episodes, slow) * share**slow * (1 - share) ** (episodes - slow) * harmonic
    return mean_s * total
